"""`python -m litefs_django._litefs.node DESCRIPTION`: the supervisor, as `manage.py litefs_run` becomes it."""

from __future__ import annotations

import sys
from pathlib import Path

from litefs_django._litefs.node.description import NodeDescription
from litefs_django._litefs.node.supervisor import Supervisor
from litefs_django._litefs.node.witness import Witness

if __name__ == "__main__":
    node = NodeDescription.read(Path(sys.argv[1]))
    sys.exit((Supervisor(node) if node.litefs else Witness(node)).run())
