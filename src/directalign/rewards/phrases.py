"""What a reward's text side says of each phrase, asked once: one image is scored under many phrasings, and prompts come back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

LIMIT = 65_536
AT_ONCE = 8
"""Phrases that a text tower encodes together."""


class Phrases:
    """Answers of `encode`, which takes a list of phrases and gives as many answers, a list or the rows of a tensor; the oldest are forgotten above `limit`.

    With `at_once`, `encode` gets so many at a time, filled up with the last: in batches of one shape a phrase has the same features to the
    bit in whatever company it first comes, as after a resume. `encode` must then pad to one length.
    """

    def __init__(self, encode: Callable[[list[str]], Any], limit: int = LIMIT, at_once: int | None = None) -> None:
        self.encode, self.limit, self.at_once = encode, limit, at_once
        self.held: dict[str, Any] = {}

    def read(self, prompts: Sequence[str]) -> list[Any]:
        """One answer per prompt, in order; what is new is encoded now."""
        new = [phrase for phrase in dict.fromkeys(prompts) if phrase not in self.held]
        size = self.at_once or len(new)
        for part in (new[start : start + size] for start in range(0, len(new), size or 1)):
            answers = self.encode([*part, *part[-1:] * (size - len(part))])
            self.held.update(zip(part, answers[: len(part)], strict=True))
        read = [self.held[prompt] for prompt in prompts]
        for phrase in list(self.held)[: max(0, len(self.held) - self.limit)]:
            del self.held[phrase]
        return read
