"""The page: reads what a run left in its folder and writes one self-contained HTML file. Needs no torch."""

from .page import write_page

__all__ = ["write_page"]
