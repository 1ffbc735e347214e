"""`python -m directalign` is the `directalign` command."""

from __future__ import annotations

from .cli import main

main()
