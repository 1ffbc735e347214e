"""`python -m directalign` is the `directalign` command."""

from .cli import main

main()
