"""What all sections of a recipe share: strict validation and the constrained number types."""

import os
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

MAX_SEED = 2**64 - 1
"""Largest seed of torch's generators."""
MAX_COUNT = 1_000_000_000
Positive = Annotated[int, Field(ge=1, le=MAX_COUNT)]
NonNegative = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Steps = Annotated[int, Field(ge=1, le=1000)]
"""Steps of a sampler's grid."""
BatchSize = Annotated[int, Field(ge=1, le=4096)]
MAX_FLOAT = 1e30
"""Largest number in a recipe: it and its products with small ones fit 32 bits."""
PositiveFloat = Annotated[float, Field(gt=0, le=MAX_FLOAT)]
NonNegativeFloat = Annotated[float, Field(ge=0, le=MAX_FLOAT)]
Guidance = Annotated[float, Field(ge=1, le=1000)]
"""Of classifier-free guidance: 1 is none, and below it the prompt would count for less."""
Fraction = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]
Sigma = Fraction
"""Noise level: 0 is a clean image, 1 is pure noise."""
Pixels = Annotated[int, Field(ge=8, le=16_384)]

_list_as_tuple = BeforeValidator(lambda given: tuple(given) if isinstance(given, list) else given)
"""YAML has lists only, and strict validation refuses a list where a tuple is declared."""
Pair = Annotated[tuple[float, float], _list_as_tuple]
Size = Annotated[tuple[Pixels, Pixels], _list_as_tuple]
"""(height, width) in pixels."""
DtypeName = Literal["float32", "bfloat16"]


def _fits_a_file_system(path: str) -> str:
    longest = max(len(os.fsencode(part)) for part in path.split("/"))
    if longest > 255 or len(os.fsencode(path)) > 4095:
        raise ValueError(f"got {path[:40]!r}..., which is longer than any path; correct it")
    return path


PathText = Annotated[Text, AfterValidator(_fits_a_file_system)]
"""A path, or a name in its place: a hub id, world:..., hf:..."""

Judge = Literal["world", "world2", "none"]
"""Whose classifiers judge images: those of a toy world, or nobody's."""

RESUME = "resume"
"""Attribute of a key in the JSON schema: whether a resumed run may have another value there and
below; without it the value must stay."""
FIXED, FREE, MOVED = "must stay", "may change", "may change; the contents must stay"
LAYOUT = "may change; the prompts per update over all processes must stay"
Free, Moved, Layout = (Field(json_schema_extra={RESUME: rule}) for rule in (FREE, MOVED, LAYOUT))
"""For `Annotated` keys; of a section, for all its keys."""


class Strict(BaseModel):
    """Base of all sections: no unknown keys, no conversion of text to numbers, immutable.

    The string below a field is its description, in errors and in the JSON schema.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def differences(
    before: Any, now: Any, key: str = "", rule: str = FIXED
) -> Iterator[tuple[str, str, Any, Any]]:
    """(dotted key, rule of resume, value before, value now) of every value that differs."""
    if isinstance(before, Strict) and type(before) is type(now):
        for name, field in type(now).model_fields.items():
            values, extra = (getattr(before, name), getattr(now, name)), field.json_schema_extra
            own = str(extra[RESUME]) if isinstance(extra, dict) else rule
            yield from differences(*values, f"{key}.{name}".lstrip("."), own)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, values in enumerate(zip(before, now, strict=True)):
            yield from differences(*values, f"{key}.{index}", rule)
    elif isinstance(before, dict) and isinstance(now, dict):
        for name in dict.fromkeys((*before, *now)):
            yield from differences(before.get(name), now.get(name), f"{key}.{name}", rule)
    elif before != now:
        yield key, rule, before, now


def named_sections(base: type[Strict], objects: Iterable[Any]) -> list[Any]:
    """The classes derived from `base` that have a `name`: the alternatives of a tagged union."""
    classes = [each for each in objects if isinstance(each, type) and issubclass(each, base)]
    return [each for each in classes if "name" in each.model_fields]
