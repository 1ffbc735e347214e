"""Defences against reward hacking, side by side: a reward that is blind to the exploit's direction, and a second reward beside the first.

Everything is judged by what no arm is trained on: the judges, the drift of colours, a held-out reward of the opposite taste, and prompts
that ask for other styles. `raw` is the trained reward itself without any projection, so that all arms are asked the same.
"""

from __future__ import annotations

from .. import config
from ..reward_analysis.bias_directions import Request, make_directions
from .defences_story import draw, tell
from .running.experiment import folder_of, run_arm, run_arms, settings_of
from .running.pieces import piece
from .running.records import Arm, Row
from .running.sizes import PAIRS, QUICK_PAIRS, sized
from .wordings import OTHERS, PHOTO
from dataclasses import replace
from functools import partial
from pathlib import Path


__all__ = ["NAME", "QUESTION", "TITLE", "draw", "measure", "tell"]

NAME = "defences"
TITLE = "Defences: a reward blind to the exploit, and rewards that must agree"
QUESTION = (
    "judgebench (2026) found that a model which games an embedding cosine moves all images along one direction, leaks that onto unrelated prompts, and is "
    "cured by projecting the direction out. Here the embedded reward's taste for red is the exploit. Its direction is learned from an earlier hacked run with "
    "another seed, or guessed from tinted and blurred images, or read off the texts alone; what the control words want is left in, and the reward is made "
    "blind to it. Beside it stand a mixture with a second reward of the opposite taste, with and without paying only what both agree on. "
    "At the same photo rate, which has the least drift, and what do a held-out reward and off-topic prompts say?"
)
SEEDS, LEARNED_FROM = (0, 1, 2), 100
PLAIN, OFFICIAL = "world_direct_align", "world_official"
KEPT = config.ControlPhrases(positive=list(PHOTO), negative=list(OTHERS))
PROBES = ("red tint", "blur")
SEEN = (
    'evaluate.rewards={second: {name: clip, path: "world:second_reward"}, raw: {name: clip, path: "world:reward"}}',
    "evaluate.off_topic=world",
    "evaluate.every=10",
)
HACKED = Arm("hacked", "plain, the run that is learned from", PLAIN, ("evaluate.every=0",))
MIX = (
    '{name: mix, members: [{label: first, reward: {name: clip, path: "world:reward"}}, '
    '{label: second, reward: {name: clip, path: "world:second_reward"}}], disagreement: DISAGREEMENT}'
)
DISAGREEMENT = 1.0
QUICK_NAMES = ("plain", "plain_texts")


def arms(out: Path) -> list[Arm]:
    """All arms; the files of directions lie in `out`."""

    def blind(name: str) -> str:
        return f"reward.project={json_path(file_of(name, out))}"

    return [
        Arm("plain", "plain", PLAIN, SEEN),
        Arm("plain_learned", "plain, blind to the learned exploit", PLAIN, (*SEEN, blind("learned"))),
        Arm("plain_probes", "plain, blind to tint and blur", PLAIN, (*SEEN, blind("probes"))),
        Arm("plain_texts", "plain, blind to what texts share", PLAIN, (*SEEN, blind("texts"))),
        Arm("official", "SRPO, official", OFFICIAL, SEEN),
        Arm("official_learned", "SRPO, official, blind to the learned exploit", OFFICIAL, (*SEEN, blind("learned"))),
        Arm("mixture", "plain, two rewards", PLAIN, (*SEEN, f"reward={MIX.replace('DISAGREEMENT', '0.0')}")),
        Arm("agreement", "plain, two rewards that must agree", PLAIN, (*SEEN, f"reward={MIX.replace('DISAGREEMENT', str(DISAGREEMENT))}")),
    ]


def json_path(file: Path) -> str:
    """A path as an override takes it, whatever is in it."""
    return f'"{file.as_posix()}"'


def file_of(name: str, out: Path) -> Path:
    """Where the directions of a source lie."""
    return out / "directions" / f"{name}.safetensors"


def measure(out: Path, quick: bool, recipes: Path) -> list[Row]:
    """Train the run that is learned from, fit the directions, then train every arm; quick: two arms, one seed, two updates."""
    hacked = sized([HACKED], quick)[0]
    run_arm(hacked, LEARNED_FROM, out, recipes)
    requests = requests_for(folder_of(hacked, LEARNED_FROM, out), recipes, QUICK_PAIRS if quick else PAIRS)
    settings = settings_of(hacked, LEARNED_FROM, recipes)
    facts = [row for name, request in requests.items() for row in piece(out, f"directions-{name}", settings, partial(_fitted, name, request, out))]
    compared = [arm for arm in arms(out) if not quick or arm.name in QUICK_NAMES]
    return facts + run_arms(NAME, sized(compared, quick), SEEDS[:1] if quick else SEEDS, out, recipes)


def requests_for(hacked: Path, recipes: Path, num_pairs: int) -> dict[str, Request]:
    """Where each of the directions comes from; what the control words want is left in all of them."""
    blank = Request(str(recipes / f"{PLAIN}.yaml"), None, None, keep=KEPT, num_pairs=num_pairs)
    return {
        "learned": replace(blank, after=hacked),
        "probes": replace(blank, before=hacked, probes=PROBES),
        "texts": replace(blank, prompts="world"),
    }


def _fitted(name: str, request: Request, out: Path) -> list[Row]:
    found = make_directions(request, file_of(name, out))
    told = {"shared": found.shared, "wanted": found.wanted, "held": found.held, "gain": found.gain, "explained": found.explained}
    return [{"study": NAME, "kind": "directions", "arm": name, "title": name, "seed": LEARNED_FROM, "directions": len(found.rows), **told}]
