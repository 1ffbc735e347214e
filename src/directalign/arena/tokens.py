"""Tokens that hide which model made an image.

`TokenSigner` derives tokens, sides, orders and links from one secret by HMAC: without a table, the
same after a restart.
"""

import hmac
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

_LINK = re.compile(r"([0-9]{1,9})\.([0-9a-f]{32})", re.ASCII)


def new_secret() -> str:
    """A random secret in hexadecimal."""
    return secrets.token_hex(32)


@dataclass(frozen=True)
class TokenSigner:
    """The secret of an arena and the tokens derived from it; `repr` hides the secret."""

    secret: bytes = field(repr=False)

    def token(self, *parts: str | int) -> str:
        """32 hexadecimal digits that stand for `parts`."""
        return hmac.new(self.secret, json.dumps(parts).encode(), "sha256").hexdigest()[:32]

    def shuffled(self, models: Sequence[str], annotator: int, item: int) -> list[str]:
        """The models in the order of an annotator's screen: random, the same at every call."""
        return sorted(models, key=lambda model: self.token("side", annotator, item, *models, model))

    def link(self, annotator: int) -> str:
        """Value of an annotator's personal link and cookie."""
        return f"{annotator}.{self.token('annotator', annotator)}"

    def annotator(self, link: str) -> int | None:
        """Annotator of a link, None for a forged or malformed one. Compares in constant time."""
        found = _LINK.fullmatch(link)
        genuine = found and self._equal(found[2], "annotator", int(found[1]))
        return int(found[1]) if found and genuine else None

    def verifies(self, role: str, token: str) -> bool:
        """Whether `token` is that of a role: `owner` or `invitation`."""
        return self._equal(token, role)

    def _equal(self, token: str, *parts: str | int) -> bool:
        return hmac.compare_digest(token.encode(errors="replace"), self.token(*parts).encode())
