"""Numbers and names of things in English, as far as facts need them: "a red apple", "exactly two buses"."""

from __future__ import annotations

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
IRREGULAR = {"person": "people", "mouse": "mice", "knife": "knives", "sheep": "sheep", "scissors": "scissors", "skis": "skis", "broccoli": "broccoli"}
HISSING = ("s", "x", "z", "ch", "sh")


def some(count: int, thing: str, limit: str, color: str = "") -> str:
    """ "a bus", "at least two red buses": `limit` goes before numbers, and before one only where it says exactly."""
    named = f"{color} {noun(count, thing)}".strip()
    if count == 1 and limit != "exactly ":
        return f"{'an' if named[0] in 'aeiou' else 'a'} {named}"
    return f"{limit}{NUMBERS[count] if count < len(NUMBERS) else count} {named}"


def noun(count: int, thing: str) -> str:
    """The plural where it is not one; of several words the last changes."""
    before, _, last = thing.rpartition(" ")
    return thing if count == 1 else f"{before} {_plural(last)}".strip()


def _plural(word: str) -> str:
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word.endswith(HISSING):
        return f"{word}es"
    return f"{word[:-1]}ies" if word.endswith("y") and word[-2:-1] not in "aeiou" else f"{word}s"
