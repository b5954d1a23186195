"""`python -m headway.crashtest.targets NAME DIR`: runs a recipe's workload in DIR, for a tracer around it."""

import sys
from pathlib import Path

from headway.crashtest.targets.catalogue import find

find(sys.argv[1]).workload(Path(sys.argv[2]))
