"""The scripts under benchmarks/ import each other by plain names, as Python finds them; so do the tests of them."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
for folder in (str(HERE), str(HERE.parents[1] / "benchmarks")):
    if folder not in sys.path:
        sys.path.append(folder)
