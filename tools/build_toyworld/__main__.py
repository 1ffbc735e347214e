"""`python -m tools.build_toyworld DIR [--only PART] [--device cpu]`: train, or resume in DIR."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from directalign.types import DirectAlignError

from . import SHIPPED, build_world

parser = argparse.ArgumentParser(description="Train every embedded model again from its seed.")
parser.add_argument("folder", type=Path, help="state of the trainings; a second call resumes them")
parser.add_argument("--only", action="append", metavar="PART", help=f"one of {', '.join(SHIPPED)}")
parser.add_argument("--device", default="cpu", help="cpu or cuda")
given = parser.parse_args()
try:
    build_world(given.folder, given.only, given.device)
except DirectAlignError as error:
    sys.exit(str(error))
