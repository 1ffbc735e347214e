"""directalign: align text-to-image models with Direct-Align and SRPO (arXiv 2509.06942)."""

import logging

__version__ = "0.1.0"

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
