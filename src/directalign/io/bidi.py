"""Outside texts whose letters run from right to left, beside numbers and other texts."""

import re
import unicodedata

_ISOLATED = re.compile("\u2068[^\u2066-\u2069]*\u2069")
_RIGHT_TO_LEFT = {"R", "AL", "AN", "RLE", "RLO", "LRE", "LRO", "PDF", "RLI", "LRI", "FSI", "PDI"}
_WITHOUT_ISOLATES = dict.fromkeys(range(0x2066, 0x206A))


def isolated(text: str) -> str:
    """The text between isolating marks if it has letters or marks of another direction.

    They would otherwise turn what stands beside them: "70.6 %" into "6.07 %" (Unicode annex 9).
    What is isolated already stays as it is.
    """
    outside = "" if text.isascii() else _ISOLATED.sub("", text)
    if not any(unicodedata.bidirectional(letter) in _RIGHT_TO_LEFT for letter in outside):
        return text
    return f"\u2068{text.translate(_WITHOUT_ISOLATES)}\u2069"
