"""`python -m litefs_django._litefs.node DESCRIPTION`: the supervisor, as `manage.py litefs_run` becomes it."""

from __future__ import annotations

import sys
from pathlib import Path

from litefs_django._litefs.node.description import NodeDescription
from litefs_django._litefs.node.supervisor import Supervisor

if __name__ == "__main__":
    sys.exit(Supervisor(NodeDescription.read(Path(sys.argv[1]))).run())
