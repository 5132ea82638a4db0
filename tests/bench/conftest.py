"""Makes the repository's `bench` package importable: it isn't installed, and the tests' own folder has its name."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
