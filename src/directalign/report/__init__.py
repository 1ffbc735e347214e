"""The page: reads what a run left in its folder and writes one self-contained HTML file. Needs no torch."""

from .page import NothingToReport, write_page


__all__ = ["NothingToReport", "write_page"]
