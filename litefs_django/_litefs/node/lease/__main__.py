"""`python -m litefs_django._litefs.node.lease DESCRIPTION`: the lease process of one node."""

from __future__ import annotations

import sys
from pathlib import Path

from litefs_django._litefs.node.lease.description import LeaseDescription
from litefs_django._litefs.node.lease.process import run

if __name__ == "__main__":
    sys.exit(run(LeaseDescription.read(Path(sys.argv[1]))))
