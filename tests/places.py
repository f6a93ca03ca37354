"""Paths of the checkout, the golden files and the folder of test data."""

from __future__ import annotations

import os
from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
GOLDEN = TESTS / "golden"
SHARED = Path(os.environ.get("OMGSR_SHARED", ROOT.parent / "shared"))
