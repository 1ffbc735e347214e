"""directalign: align text-to-image models with Direct-Align and SRPO (arXiv 2509.06942)."""


__version__ = "0.1.0"
