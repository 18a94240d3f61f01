"""The benchmarks lie beside `src`, not in it."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
