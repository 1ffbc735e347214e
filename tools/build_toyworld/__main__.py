"""`python -m tools.build_toyworld DIR [--world world2] [--only PART]`: train, or resume in DIR."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from directalign.types import DirectAlignError

from . import build_world, shipped
from .spec import SPECS

parser = argparse.ArgumentParser(description="Train every embedded model again from its seed.")
parser.add_argument("folder", type=Path, help="state of the trainings; a second call resumes them")
parser.add_argument("--world", choices=SPECS, default="world")
parts = ", ".join(dict.fromkeys(part for spec in SPECS.values() for part in shipped(spec)))
parser.add_argument("--only", action="append", metavar="PART", help=f"one of {parts}")
parser.add_argument("--device", default="cpu", help="cpu or cuda")
given = parser.parse_args()
try:
    build_world(given.folder, SPECS[given.world], given.only, given.device)
except DirectAlignError as error:
    sys.exit(str(error))
