"""Experiments as runnable units: `directalign study NAME` trains what is compared, and leaves rows, tables, figures and a text.

Every number and every sentence of a study's text is computed from its rows. Modules are imported when asked for, so that
the command's help stays instant.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable


STUDIES = {
    "table1": "All methods side by side, at matched compute and at matched reward",
    "tuning": "The learning rate of every method, chosen with equal care",
    "convergence": "What it costs to reach the same judge level",
    "timesteps": "Early, late or full window: which training looks most hacked",
    "words": "Control words: which pairs cancel the bias, and what they suppress",
    "control_words": "Control words by measurement: are the right ones found, and is the suggested ramp better?",
    "control_tokens": "Learned control tokens against the best control words",
    "inversion": "Two branches, one branch and the half-cost variant",
    "anchor": "The anchored reward against the ramps, and where it fails",
    "recovery": "How exact the recovered image is, by noise level and jump",
    "defences": "Defences: a reward blind to the exploit, and rewards that must agree",
    "ddpm": "The comparison on the embedded Stable Diffusion",
    "listening": "A reward that listens: taught to respond to control words, before and after",
    "compared": "The comparison: who wins on the world, and do its intervals hold what they promise?",
    "stopping": "A run that stops itself before it ruins the model",
    "stability": "The aligned model over samplers, step counts, guidance, seeds and long chains",
}
"""What `directalign study --help` says of each; the same words as the module's TITLE."""


@runtime_checkable
class Study(Protocol):
    """What a module of this package offers.

    `measure(out, quick, recipes)` trains or measures whatever is not there yet and returns the rows, `tell(rows)` gives
    Markdown, `draw(rows, folder)` writes PNG files named after NAME. QUESTION is two to four sentences: what the paper
    claims and what is measured.
    """

    @property
    def NAME(self) -> str: ...

    @property
    def TITLE(self) -> str: ...

    @property
    def QUESTION(self) -> str: ...

    def measure(self, out: Path, quick: bool, recipes: Path) -> list[dict[str, Any]]: ...

    def tell(self, rows: list[dict[str, Any]]) -> str: ...

    def draw(self, rows: list[dict[str, Any]], folder: Path) -> list[Path]: ...


def run_study(name: str, out: Path, quick: bool, recipes: Path) -> Path:
    """Measure, and write `out/results.jsonl`, the figures and `out/README.md`, which is returned. Called again it goes on.

    Raises: DirectAlignError for an unknown name, for a folder of another study or size, and as `measure` does.
    """
    from .showing.publish import claim, publish

    stability = load_study(name)
    claim(out, name, quick)
    return publish(stability, stability.measure(out, quick, recipes), out, quick)


def load_study(name: str) -> Study:
    """The module of a study.

    Raises: DirectAlignError for an unknown name.
    """
    if name not in STUDIES:
        from ..types import DirectAlignError

        raise DirectAlignError(f"no study is called {name}; there are {', '.join(STUDIES)}")
    return _imported(name)


def _imported(name: str) -> Study:
    match name:
        case "table1":
            from . import table1
        case "tuning":
            from . import tuning
        case "convergence":
            from . import convergence
        case "timesteps":
            from . import timesteps
        case "words":
            from . import words
        case "control_words":
            from . import control_words
        case "control_tokens":
            from . import control_tokens
        case "inversion":
            from . import inversion
        case "anchor":
            from . import anchor
        case "recovery":
            from . import recovery
        case "defences":
            from . import defences
        case "ddpm":
            from . import ddpm
        case "listening":
            from . import listening
        case "compared":
            from . import compared
        case "stopping":
            from . import stopping
        case _:
            from . import stability
    return stability
