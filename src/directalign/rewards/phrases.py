"""What a reward's text side says of each phrase, asked once: one image is scored under many phrasings, and prompts come back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

LIMIT = 65_536


class Phrases:
    """Answers of `encode`, which takes a list of phrases and gives as many answers, a list or the rows of a tensor; the oldest are forgotten above `limit`."""

    def __init__(self, encode: Callable[[list[str]], Any], limit: int = LIMIT) -> None:
        self.encode, self.limit = encode, limit
        self.held: dict[str, Any] = {}

    def read(self, prompts: Sequence[str]) -> list[Any]:
        """One answer per prompt, in order; what is new is encoded in one batch."""
        new = [phrase for phrase in dict.fromkeys(prompts) if phrase not in self.held]
        if new:
            self.held.update(zip(new, self.encode(new), strict=True))
        read = [self.held[prompt] for prompt in prompts]
        for phrase in list(self.held)[: max(0, len(self.held) - self.limit)]:
            del self.held[phrase]
        return read
