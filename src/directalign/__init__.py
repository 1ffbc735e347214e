"""directalign: align text-to-image models with Direct-Align and SRPO (arXiv 2509.06942)."""

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Run, align, compare, load_reward, save_lora
    from .errors import DirectAlignError, NonFiniteError
    from .training import Interrupted

__version__ = "0.1.0"
__all__ = [
    "DirectAlignError",
    "Interrupted",
    "NonFiniteError",
    "Run",
    "align",
    "compare",
    "load_reward",
    "save_lora",
]
_ERRORS = {"DirectAlignError": ".errors", "NonFiniteError": ".errors", "Interrupted": ".training"}


def __getattr__(name: str) -> Any:
    """The Python API, imported when a name is first used: importing the package needs no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_ERRORS.get(name, ".api"), __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_WITHOUT_A_REMEDY = {
    "bitsandbytes.backends.cpu.ops": "gemm_4bit_forward",
    "transformers.utils.import_utils": "requires torchvision (not installed); falling back",
}
"""Warnings at the import of libraries, by logger, about what is not used here: a kernel for
inference on a CPU, and image processors of transformers."""

for _logger, _words in _WITHOUT_A_REMEDY.items():
    logging.getLogger(_logger).addFilter(
        lambda record, words=_words: words not in record.getMessage()
    )
