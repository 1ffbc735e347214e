"""Directions in feature space along which a reward is exploited, for `reward.project_out`.

A model that exploits an embedding cosine moves the features of all images the same way; a reward
without that direction resists it (judgebench, 2026). Directions are fitted from paired images
before and after training or a probe, or from the common gradient of texts: first the mean shift,
then the strongest directions of the rest. The wanted difference (of control phrases or examples) is
removed from the shifts first, so that a projected reward (`rewards.projection`) keeps it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, product
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .. import config
from ..data.captions import NONE
from ..data.image_dataset import ENDINGS
from ..data.image_io import Unreadable, read_pixels
from ..data.prompts import read_prompts
from ..device import default_device
from ..evaluation.eval_prompts import fixed_pairs, measured_prompts
from ..evaluation.generate import RECORD, generate, load_run_model, run_of
from ..evaluation.run_weights import find_weights
from ..interfaces import Reward
from ..io.text import json_rows, read_text
from ..rewards import OPTION, load_named_reward, reward_settings
from ..rewards.common import Device
from ..rewards.projection import Directions, fingerprint, project_out, write_directions
from ..types import DirectAlignError
from .images import PROBES, Examples, Sides, load_examples, source_text
from .responsiveness import encode, vectors, with_phrase

Features = Float[Tensor, "n d"]
Rows = Float[Tensor, "_m d"]
MIN_SHIFT = 1e-6
"""Length below which a shift between unit features is rounding error."""


@dataclass(frozen=True)
class Request:
    """One of three sources of shifts, and the difference to keep.

    `before`, `after`: folders of images, or runs (base model, trained weights). `probes`: names in
    `PROBES`, applied to `before`, each with `components` directions. `prompts` (as data.prompts):
    no images; the shift is the common gradient of all texts. `keep`, `keep_examples`: phrases and
    labelled examples whose difference is removed from the shifts; `caption` as in `load_examples`.
    """

    reward: str
    before: Path | None
    after: Path | None
    probes: tuple[str, ...] = ()
    prompts: str | None = None
    keep: config.ControlPhrases = field(default_factory=config.ControlPhrases)
    keep_examples: str | Sides | None = None
    caption: str = NONE
    components: int = 1
    num_samples: int = 64


@dataclass(frozen=True)
class DirectionStats:
    """Directions (m, d), float64, orthonormal. Shares are of the mean squared length of the shifts.

    `shared`: equal for every image (1/n by chance); `wanted`: along what is kept; `captured`: along
    the directions. `gain`: of the mean score under the bare prompts; `projected_gain`: of a reward
    without the directions; both None without prompts.
    """

    rows: Rows
    images: int
    shared: float
    wanted: float
    captured: float
    gain: float | None = None
    projected_gain: float | None = None

    @property
    def explained(self) -> float | None:
        """Share of the gain along the directions; None if there is no gain."""
        if self.gain is None or self.projected_gain is None or self.gain <= 0:
            return None
        return 1 - self.projected_gain / self.gain


def make_directions(request: Request, out: Path) -> DirectionStats:
    """Fit the directions, write them to `out` and return their statistics.

    Raises: DirectAlignError for incompatible options, unusable images, and a reward without
    `project_out`.
    """
    _check(request)
    settings = reward_settings(request.reward)
    if not isinstance(settings, config.ClipConfig | config.AltClipConfig | config.SiglipConfig):
        raise DirectAlignError(
            f"{OPTION} {request.reward}: {settings.name} takes no project_out: only clip, "
            "altclip and siglip have one feature vector per image"
        )
    device = default_device()
    reward = load_named_reward(settings.model_copy(update={"project_out": None}), device)
    before, changed, prompts = _shifts(request, reward, device)
    wanted = _wanted_rows(request, reward, before, prompts)
    fits = [fit(before, after, request.components, wanted) for after in changed]
    rows, count = orthonormal_union(fits), len(changed)
    scored = prompts * count if prompts and request.prompts is None else None
    features = before.repeat(count, 1), torch.cat(changed)
    found = direction_stats(reward, *features, rows, wanted, scored)
    mark = fingerprint(reward.model)  # pyright: ignore[reportAttributeAccessIssue]
    write_directions(out, Directions(rows.float(), mark, _provenance(request, found)))
    return found


def _check(request: Request) -> None:
    unknown = [name for name in request.probes if name not in PROBES]
    before, after, probes, prompts = request.before, request.after, request.probes, request.prompts
    has_images = bool(before or after or probes)
    mistakes = (
        (unknown, f"--probe {''.join(unknown[:1])}: unknown; choose from {', '.join(PROBES)}"),
        (
            prompts is not None and has_images,
            "--prompts: takes the common gradient of texts and needs no image; omit --before, "
            "--after and --probe",
        ),
        (
            probes and (after is not None or before is None),
            "--probe: changes the images of --before itself; give --before and omit --after",
        ),
        (
            not probes and after is None and prompts is None,
            "--after: missing; give images of the trained model, or --probe to change those of "
            "--before, or --prompts to use only texts",
        ),
        (
            bool(request.keep.positive) != bool(request.keep.negative),
            "--keep-words and --against: the difference between the two is kept; give both",
        ),
    )
    for is_wrong, message in mistakes:
        if is_wrong:
            raise DirectAlignError(message)


NamedImages = dict[str, tuple[Tensor, str | None]]
"""Name -> image in [0, 1] of any size, and its prompt, if known."""


def read_images(source: Path, base: bool, num_samples: int, key: str) -> NamedImages:
    """Images of a folder, or `num_samples` samples of a run's `base` or trained model.

    Raises: DirectAlignError naming the option `key`: no folder, no image, or one not decodable.
    """
    if (source / "run.yaml").is_file():
        run, trained = run_of(source)
        pairs = fixed_pairs(measured_prompts(run), num_samples)
        weights = None if base or trained is None else find_weights(run, trained)
        model = load_run_model(run, weights)
        size = run.evaluate.batch_size
        images = generate(model, pairs.prompts, pairs.seeds, run.rollout, size)
        each = zip(images, pairs.prompts, pairs.seeds, strict=True)
        return {f"{seed} {prompt}": (image, prompt) for image, prompt, seed in each}
    files = sorted(source.iterdir()) if source.is_dir() else []
    files = [file for file in files if file.suffix.lower() in ENDINGS]
    if not files:
        raise DirectAlignError(
            f"{key} {source}: holds neither images nor a run (run.yaml); give a folder of "
            "images, or one that directalign train wrote"
        )
    record, found = source / RECORD, {}
    if record.is_file():  # of directalign sample
        rows = [row for _, row in json_rows(record, "record of samples")]
        prompts = {str(row.get("file")): str(row.get("prompt")) for row in rows}
    else:
        texts = [(file.name, file.with_suffix(".txt")) for file in files]
        prompts = {n: read_text(t, "caption file").strip() for n, t in texts if t.is_file()}
    for file in files:
        try:
            image = torch.from_numpy(read_pixels(file)).permute(2, 0, 1).float()
        except Unreadable as error:
            raise DirectAlignError(f"{key} {file}: {error}; repair or remove it") from error
        if file.stem in found:
            raise DirectAlignError(f"{key} {file}: another image has this name; rename one")
        found[file.stem] = image, prompts.get(file.name)
    return found


def match_images(before: NamedImages, after: NamedImages) -> tuple[NamedImages, NamedImages]:
    """Select the common names in one order.

    Raises: DirectAlignError for fewer than two common names, and for two prompts under one name.
    """
    names = [name for name in before if name in after]
    if len(names) < 2:
        raise DirectAlignError(
            f"--before, --after: {len(names)} names in common, at least 2 are needed: pair "
            f"images by their names ({next(iter(after))})"
        )
    for name in names:
        one, other = before[name][1], after[name][1]
        if None not in (one, other) and one != other:
            raise DirectAlignError(
                f"--before, --after: {name} has the prompt {one!r:.60} before and {other!r:.60} "
                "after: pair images of one prompt and seed"
            )
    return {name: before[name] for name in names}, {name: after[name] for name in names}


Prompts = tuple[str, ...] | None


def _shifts(
    request: Request, reward: Reward, device: torch.device | str
) -> tuple[Features, list[Features], Prompts]:
    """Features before and after each change, and their prompts if known."""
    if request.prompts is not None:  # from 0 along every prompt's gradient, under wanted phrases
        prompts = tuple(read_prompts(request.prompts))
        like = encode_images(reward, [torch.zeros(3, 32, 32)], device)
        phrases = request.keep.positive or [""]
        after = torch.cat([text_gradients(reward, prompts, phrase, like) for phrase in phrases])
        return torch.zeros_like(after), [after], prompts
    source, key = request.before or request.after, "--before" if request.before else "--after"
    assert source is not None
    before = read_images(source, True, request.num_samples, key)
    sides = [before]
    if request.after is not None:
        after = read_images(request.after, False, request.num_samples, "--after")
        sides = list(match_images(before, after))
    known = [prompt for _, prompt in sides[0].values() if prompt is not None]
    prompts = tuple(known) if len(known) == len(sides[0]) else None
    images = [[image for image, _ in side.values()] for side in sides]
    for probe in (PROBES[name] for name in request.probes):
        images.append([probe(image[None])[0] for image in images[0]])
    features = [encode_images(reward, each, device) for each in images]
    return features[0], features[1:], prompts


def _wanted_rows(request: Request, reward: Reward, like: Features, prompts: Prompts) -> Rows | None:
    """Orthonormal rows to keep; None if nothing was named."""
    rows = []
    if request.keep.positive:
        if prompts is None:
            raise DirectAlignError(
                "--keep-words: needs the images' prompts; put a .txt beside each image, or use "
                "--keep-examples"
            )
        rows.append(wanted_from_phrases(reward, prompts, request.keep, like))
    if request.keep_examples is not None:
        source, caption = request.keep_examples, request.caption
        examples = load_examples(source, "--keep-examples", caption=caption)
        rows.append(wanted_from_examples(reward, examples, like.device))
    return orthonormal_union(rows) if rows else None


def _provenance(request: Request, found: DirectionStats) -> dict[str, str]:
    """Source of the directions, for the file's metadata."""
    keep, paths = request.keep, f"{request.before or request.after} to {request.after}"
    phrases = " ".join([*keep.positive, "against", *keep.negative]) if keep.positive else ""
    facts = {
        "from": request.prompts or ", ".join(request.probes) or paths,
        "images": str(found.images),
        "kept": ", ".join(filter(None, (phrases, source_text(request.keep_examples or "")))),
        "reward": request.reward,
    }
    return {name: text for name, text in facts.items() if text}


def fit(before: Features, after: Features, components: int = 1, wanted: Rows | None = None) -> Rows:
    """Directions (components, d) from `before` to `after`, float64 on the CPU.

    Args:
        before, after: unit features of the same prompts and seeds, row by row.
        components: the mean shift first, then the strongest directions of the rest (not centered).
        wanted: orthonormal rows removed from every shift first.
    Raises: DirectAlignError if the images did not move, or not in so many directions.
    """
    shifts = (after - before).double().cpu()
    rest = shifts if wanted is None else remove_rows(shifts, wanted)
    mean = rest.mean(0, keepdim=True)
    if mean.norm() < MIN_SHIFT:
        raise DirectAlignError(
            "the images moved in no common direction, beyond what is kept: give images of a model "
            "that was trained for longer"
        )
    first = F.normalize(mean, dim=-1)
    _, sizes, rows = torch.linalg.svd(remove_rows(rest, first), full_matrices=False)
    rank = int((sizes > MIN_SHIFT).sum())
    if components - 1 > rank:
        raise DirectAlignError(
            f"--components {components}: the images moved in {rank + 1} directions only; ask for "
            "fewer"
        )
    return torch.cat([first, rows[: components - 1]])


@torch.no_grad()
def direction_stats(
    reward: Reward,
    before: Features,
    after: Features,
    rows: Rows,
    wanted: Rows | None,
    prompts: Sequence[str] | None,
) -> DirectionStats:
    """Shares of the shifts along directions and, given prompts, of the score gain."""
    shifts = (after - before).double().cpu()

    def share(part: Tensor) -> float:
        return (part.square().sum(1).mean() / shifts.square().sum(1).mean()).item()

    kept = 0.0 if wanted is None else share(shifts @ wanted.T)
    shared, captured = share(shifts.mean(0, keepdim=True)), share(shifts @ rows.T)
    found = DirectionStats(rows, len(shifts), shared, kept, captured)
    if prompts is None:
        return found

    def score(features: Features) -> float:
        return reward.score(features, prompts).double().mean().item()

    gains = [
        score(project_out(after, each)) - score(project_out(before, each)) for each in (None, rows)
    ]
    return replace(found, gain=gains[0], projected_gain=gains[1])


def orthonormal_union(found: Sequence[Rows]) -> Rows:
    """Rows of several fits as one orthonormal set, in order, without dependent ones."""
    rows = found[0][:0]
    for each in torch.cat(list(found))[:, None]:
        new = remove_rows(each, rows)
        rows = torch.cat([rows, F.normalize(new, dim=-1)]) if new.norm() > MIN_SHIFT else rows
    return rows


def wanted_from_phrases(
    reward: Reward, prompts: Sequence[str], phrases: config.ControlPhrases, like: Features
) -> Rows:
    """Orthonormal span of the mean text(pos) − text(neg) over prompts, for each pair of phrases.

    `like`: any image features of the reward, for width and device.
    """
    differences = [
        text_gradients(reward, prompts, pos, like) - text_gradients(reward, prompts, neg, like)
        for pos, neg in product(phrases.positive, phrases.negative)
    ]
    return span(torch.stack([each.mean(0) for each in differences]))


def wanted_from_examples(reward: Reward, examples: Examples, device: Device = "cpu") -> Rows:
    """One unit row: mean features of wanted minus unwanted images."""
    means = [encode_images(reward, images, device).mean(0) for images, _ in examples.sides]
    return span((means[0] - means[1])[None])


def text_gradients(
    reward: Reward, prompts: Sequence[str], phrase: str, like: Features
) -> Float[Tensor, "p d"]:
    """Gradient of each prompt's score in image features; for a cosine, the text features."""
    with torch.enable_grad():
        leaf = like.new_zeros(len(prompts), like.shape[1]).requires_grad_()
        total = reward.score(leaf, with_phrase(phrase, prompts)).sum()
        return torch.autograd.grad(total, leaf)[0]


def span(vectors: Float[Tensor, "k d"]) -> Rows:
    """Orthonormal rows with the span of `vectors`, float64 on the CPU."""
    _, sizes, rows = torch.linalg.svd(vectors.double().cpu(), full_matrices=False)
    return rows[sizes > MIN_SHIFT * sizes[0]]


def remove_rows(vectors: Features, rows: Rows) -> Features:
    """Remove the part of the vectors along orthonormal rows."""
    return vectors - (vectors @ rows.T) @ rows


def encode_images(
    reward: Reward, images: Sequence[Tensor] | Tensor, device: Device = "cpu"
) -> Features:
    """One feature vector per image (3, H, W) in [0, 1] of any size; `device` is the reward's.

    Raises: DirectAlignError for a reward without one feature vector per image.
    """
    groups = [torch.stack(list(group)) for _, group in groupby(images, lambda each: each.shape)]
    found = vectors([part for group in groups for part in encode(reward, group, device)])
    if found is None:
        raise DirectAlignError(
            f"{OPTION}: {reward.name} does not have one feature vector per image; directions "
            "need a CLIP or a SigLIP"
        )
    return found
