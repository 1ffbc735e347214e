"""Everything that looks random to an annotator, from one secret in the database: tokens, sides, orders, links.

An HMAC of what a token stands for needs no table, is the same after a restart, and tells nobody without the secret what it stands for.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

SECRET_BYTES = 32
_LINK = re.compile(r"([0-9]{1,9})\.([0-9a-f]{32})", re.ASCII)


def new_secret() -> str:
    """A fresh secret in hexadecimal."""
    return secrets.token_hex(SECRET_BYTES)


@dataclass(frozen=True)
class Blind:
    """The arena's secret and what follows from it; `repr` does not show it."""

    secret: bytes = field(repr=False)

    def token(self, *parts: str | int) -> str:
        """32 hexadecimal letters that stand for `parts`."""
        return hmac.new(self.secret, json.dumps(parts).encode(), hashlib.sha256).hexdigest()[:32]

    def shuffled(self, models: Sequence[str], annotator: int, item: int) -> list[str]:
        """The models in the order in which an annotator sees them: every order is equally likely, and always the same."""
        return sorted(models, key=lambda model: self.token("side", annotator, item, *models, model))

    def link(self, annotator: int) -> str:
        """What an annotator's own link and cookie carry."""
        return f"{annotator}.{self.token('annotator', annotator)}"

    def annotator(self, link: str) -> int | None:
        """Whose link it is, None for a forged or malformed one; the comparison takes the same time for all."""
        found = _LINK.fullmatch(link)
        if found is None or not hmac.compare_digest(found[2], self.token("annotator", int(found[1]))):
            return None
        return int(found[1])

    def opens(self, door: str, token: str) -> bool:
        """Whether a token is that of a door: `owner` or `invitation`."""
        return hmac.compare_digest(token.encode(errors="replace"), self.token(door).encode())
