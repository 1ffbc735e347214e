"""The candidates of a comparison and their images: runs, bare models, base models, image folders,
references.

A folder of images has images.jsonl with file, prompt and seed of each, as `directalign sample`
writes it. All metrics are computed on PNG files, 8 bits a channel, so candidates are treated alike
and results do not depend on when an image was made.
"""

import logging
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count, product
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from .. import config
from ..config.base import MAX_SEED
from ..config.load import with_rollout
from ..data.image_io import FORMATS, Unreadable, load_sources, read_pixels
from ..io.text import checked_prompt, json_rows
from ..report.read import run_folders
from ..types import DirectAlignError, Images
from .eval_prompts import EvalSample, Pairs
from .generate import RECORD, generate, load_run_model, run_of, save_png
from .references import Reference, photographs, through_autoencoder
from .run_weights import RunWeights, find_weights, split_weights

logger = logging.getLogger(__name__)
Kind = Literal["base", "run", "model", "images", "asked", "photographs", "autoencoded", "sources"]
BASE, BASE_LABEL = "base", "Base model"
SOURCE = ("architecture", "path", "components", "revision", "variant")
BASE_SETTINGS = (*SOURCE, "args", "dtype", "quantization")
"""Settings of `config.ModelConfig` that identify the weights a run begins with."""


@dataclass(frozen=True)
class Candidate:
    """One model. `run`: its recipe with the rollout it is sampled with, None for images;
    `trained`: its trained weights; `base`: key of its base among the candidates; `phrase`: of a
    base that is asked."""

    key: str
    label: str
    kind: Kind
    source: str
    run: config.RunConfig | None = None
    trained: RunWeights | None = None
    base: str | None = None
    phrase: str = ""

    @property
    def recipe(self) -> config.RunConfig | None:
        """The recipe it was trained with; None if it was not trained."""
        return self.run if self.kind == "run" else None

    @property
    def edits(self) -> bool:
        """Whether it edits images; of folders of images this is not known."""
        return self.run is not None and self.run.data.edits is not None


def open_candidates(
    sources: Sequence[str], with_base: bool, rollout: Mapping[str, Any]
) -> list[Candidate]:
    """The candidates that `sources` name, bases first, each with a unique key and label.

    `rollout` overrides the sampling settings of all.

    Raises: DirectAlignError for no or an unknown source, a run without weights, equal labels.
    """
    if not sources:
        raise DirectAlignError(
            "nothing to compare: give runs, models or folders of images, "
            "as in directalign compare runs/a runs/b --base"
        )
    named = [each for source in sources for each in _runs_in(*_split_label(source))]
    found = _labelled([_open(*each) for each in named], [label is not None for label, _ in named])
    for place, each in enumerate(found):
        if each.run is not None:
            found[place] = replace(each, run=with_rollout(each.run, rollout))
    return _with_bases(found) if with_base else found


def _split_label(text: str) -> tuple[str | None, str]:
    """(label, source) of LABEL=SOURCE; an existing path that contains = is a source."""
    label, equals, source = text.partition("=")
    if not equals or "/" in label or Path(text).exists():
        return None, text
    if not label.strip() or not source:
        raise DirectAlignError(f"{text}: write it as LABEL=SOURCE, for example SRPO=runs/srpo")
    return label.strip(), source


def _runs_in(label: str | None, source: str) -> list[tuple[str | None, str]]:
    """The finished runs of a folder of runs, as sources; any other source as it is."""
    folder, own = Path(source), ("run.yaml", "model_index.json", RECORD)
    if label is not None or not folder.is_dir() or any((folder / name).is_file() for name in own):
        return [(label, source)]
    runs = [each for each in run_folders(folder) if (each / "summary.json").is_file()]
    return [(None, str(each)) for each in runs] or [(label, source)]


def _open(label: str | None, source: str) -> Candidate:
    path, step, strength = split_weights(source)
    folder = Path(path)
    is_run, is_pipeline = ((folder / name).is_file() for name in ("run.yaml", "model_index.json"))
    if (folder / RECORD).is_file() and not is_run:
        return Candidate("", label or folder.resolve().name, "images", source)
    if folder.is_dir() and not is_run and not is_pipeline:
        raise DirectAlignError(
            f"{source}: neither a run (run.yaml), nor a pipeline (model_index.json), "
            f"nor images ({RECORD}); give one of the three"
        )
    run, found = run_of(folder)
    if found is None:
        return Candidate("", label or folder.name, "model", source, run)
    trained = find_weights(run, found, step, strength)
    name = ", ".join([run.name, *trained.words])
    return Candidate("", label or name, "run", source, run, trained)


def _labelled(candidates: list[Candidate], given: list[bool]) -> list[Candidate]:
    """Add the folder to derived labels that are equal, and derive keys from the labels."""
    found, derived = list[Candidate](), [each.label for each in candidates]
    for each, is_given in zip(candidates, given, strict=True):
        label = each.label
        if derived.count(label) > 1 and not is_given:
            label += f" ({Path(each.source).resolve().name})"
        if same := next((other.source for other in found if other.label == label), None):
            raise DirectAlignError(
                f"{same} and {each.source} are both called {label!r}; "
                "give each a label of its own: LABEL=SOURCE"
            )
        plain = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode().lower()
        stem = re.sub(r"[^a-z0-9]+", "_", plain).strip("_")[:40] or "model"
        key = numbered(stem, "_", [BASE, *(other.key for other in found)])
        found.append(replace(each, label=label, key=key))
    return found


def numbered(name: str, separator: str, taken: Sequence[str]) -> str:
    """The name, or with the first number from 2 that makes it none of those taken."""
    names = chain([name], (f"{name}{separator}{number}" for number in count(2)))
    return next(each for each in names if each not in taken)


def _with_bases(candidates: list[Candidate]) -> list[Candidate]:
    """Put the bases first, one for each model and sampling; others get a single base."""
    firsts: dict[str, Candidate] = {}
    for each in candidates:
        if each.kind == "run":
            firsts.setdefault(_base_identity(each), each)
    if not firsts:
        raise DirectAlignError(
            "--base: adds the model that a run began with, and no run is compared; leave it out"
        )
    bases: dict[str, Candidate] = {}
    for identity, each in firsts.items():
        assert each.run is not None
        key = f"{BASE}_{len(bases) + 1}" if bases else BASE
        label = BASE_LABEL if len(firsts) == 1 else f"{BASE_LABEL} of {each.label}"
        bases[identity] = Candidate(key, label, "base", str(each.run.model.path), each.run)
    only = BASE if len(firsts) == 1 else None
    return [*bases.values()] + [
        replace(each, base=bases[_base_identity(each)].key if each.kind == "run" else only)
        for each in candidates
    ]


def _base_identity(candidate: Candidate) -> str:
    """The model that a run began with, and how it is sampled."""
    assert candidate.run is not None
    model = {name: getattr(candidate.run.model, name) for name in BASE_SETTINGS}
    return f"{model} {candidate.run.rollout.model_dump(exclude=set(config.TRAINING_ONLY))}"


def with_references(
    candidates: list[Candidate], references: Sequence[Reference]
) -> list[Candidate]:
    """Add the references of each base model of the runs, photographs once.

    Raises: DirectAlignError without a run.
    """
    bases: dict[str, Candidate] = {}
    for each in candidates:
        if each.kind in ("base", "run"):
            bases.setdefault(_base_identity(each), each)
    if not bases:
        raise DirectAlignError(
            "--references: asks the model that a run began with, and no run is compared; "
            "leave it out"
        )
    found = list(candidates)
    for base, each in product(bases.values(), references):
        label = each.label
        if len(bases) > 1 and each.kind != "photographs":
            label += f" ({base.source})"
        if all(other.label != label for other in found):
            key = numbered(each.kind, "_", [other.key for other in found])
            own = base.key if base.kind == "base" else None
            source = str(base.run.model.path) if base.run is not None else ""
            found.append(
                Candidate(key, label, each.kind, source, base.run, base=own, phrase=each.phrase)
            )
    return found


def with_sources(candidates: list[Candidate]) -> list[Candidate]:
    """Add what is edited, unchanged, if the candidates edit images.

    Raises: DirectAlignError if only some do.
    """
    alone = next((each for each in candidates if not each.edits), None)
    if alone is None:
        return [*candidates, Candidate("sources", "Unedited", "sources", "")]
    if other := next((each for each in candidates if each.edits), None):
        raise DirectAlignError(
            f"{other.source} edits images, and {alone.source} has none to edit: compare models "
            "that edit images with each other"
        )
    return candidates


Pair = tuple[str, int]
"""Prompt and seed."""


def samples_of_images(
    candidates: Sequence[Candidate], num_samples: int | None
) -> tuple[list[EvalSample], dict[str, list[Path]]]:
    """The samples of folders of images, in the order of the first, and each folder's files.

    Raises: DirectAlignError for a folder that lacks an image of another, and for other sizes.
    """
    folders = {each.key: _read(Path(each.source)) for each in candidates}
    first, *others = candidates
    pairs = list(folders[first.key])[:num_samples]
    for other in others:
        lacking = [pair for pair in pairs if pair not in folders[other.key]]
        if num_samples is None:
            lacking += [pair for pair in folders[other.key] if pair not in folders[first.key]]
        if lacking:
            prompt, seed = lacking[0]
            raise DirectAlignError(
                f"{first.source} and {other.source} are not of the same prompts and seeds: "
                f"{len(lacking)} images are in only one of them, the first of {prompt!r:.60}, "
                f"seed {seed}; sample both alike, or take the first ones with --num-samples"
            )
    files = {key: [found[pair] for pair in pairs] for key, found in folders.items()}
    _check_sizes([file for each in files.values() for file in each])
    return [EvalSample(index, *pair) for index, pair in enumerate(pairs)], files


def _read(folder: Path) -> dict[Pair, Path]:
    """The file of each prompt and seed."""
    found: dict[Pair, Path] = {}
    for line, row in json_rows(folder / RECORD, "record of images"):
        where = f"{folder / RECORD}:{line}"
        for name, kind in {"file": str, "prompt": str, "seed": int}.items():
            if not isinstance(row.get(name), kind) or isinstance(row.get(name), bool):
                raise DirectAlignError(
                    f"{where}: {name} is {row.get(name)!r:.40}; "
                    'write {"file": "a.png", "prompt": "a red star", "seed": 0}'
                )
        seed, file = row["seed"], folder / row["file"]
        if abs(seed) > MAX_SEED:
            raise DirectAlignError(f"{where}: seed {seed!s:.40} is over the largest, {MAX_SEED}")
        pair = checked_prompt(row["prompt"], where), seed
        if pair in found:
            raise DirectAlignError(
                f"{where}: {pair[0]!r:.60} with seed {pair[1]} comes twice; remove one of the two"
            )
        if not file.resolve().is_relative_to(folder.resolve()):
            raise DirectAlignError(
                f"{where}: file {row['file']!r:.80} lies outside {folder}; name a file in it"
            )
        if not file.is_file():
            raise DirectAlignError(f"{where}: {file} is missing; restore it, or remove its line")
        found[pair] = file
    if not found:
        raise DirectAlignError(
            f"{folder / RECORD}: names no image; give a folder that directalign sample wrote"
        )
    return found


def _check_sizes(files: Sequence[Path]) -> None:
    """Refuse images of different sizes, which are read from the file headers."""
    sizes: dict[tuple[int, int], Path] = {}
    for file in files:
        try:
            with Image.open(file, formats=FORMATS) as image:
                sizes.setdefault(image.size, file)
        except OSError as error:
            raise DirectAlignError(
                f"{file}: not readable as an image; restore it, or remove its line from {RECORD}"
            ) from error
    if len(sizes) > 1:
        (first, one), (second, other), *_ = sizes.items()
        raise DirectAlignError(
            f"{one} has {first[0]}x{first[1]} pixels and {other} {second[0]}x{second[1]}: "
            "bring all images to one size"
        )


def image_file(key: str, index: int) -> str:
    """File of a candidate's image of a sample, relative to the comparison's folder."""
    return f"images/{key}/{index:05d}.png"


def generate_all(
    candidates: Sequence[Candidate],
    samples: Sequence[EvalSample],
    sources: Mapping[str, Sequence[Path]],
    out: Path,
    batch_size: int | None,
) -> None:
    """Make every missing image, one model in memory at a time.

    Args:
        sources: for candidates that are folders of images, their file of every sample, by key.
    Raises:
        DirectAlignError: candidates whose images differ in size.
    """
    for candidate in candidates:
        files = [out / image_file(candidate.key, sample.index) for sample in samples]
        missing = [place for place, file in enumerate(files) if not file.is_file()]
        if not missing:
            continue
        files[0].parent.mkdir(parents=True, exist_ok=True)
        verb = "copy" if candidate.kind == "images" else "generate"
        logger.info(f"{candidate.label}: {len(missing)} images to {verb}")
        if candidate.kind == "images":
            for place in missing:
                source = sources[candidate.key][place]
                try:
                    pixels = torch.from_numpy(read_pixels(source)).permute(2, 0, 1).float()
                except Unreadable as error:
                    raise DirectAlignError(
                        f"{source}: {error}; repair it, or compare without {candidate.source}"
                    ) from error
                save_png(pixels, files[place])
        elif candidate.kind == "sources":
            height, width = load_images(out, candidates[0].key, samples[:1]).shape[-2:]
            for place in missing:
                edited = samples[place].source
                assert edited is not None
                save_png(load_sources([edited], height, width).images[0], files[place])
        else:
            _generate(candidate, samples, files, batch_size)
        _check_size(candidates[0], candidate, samples[0], out)


def load_images(out: Path, key: str, samples: Sequence[EvalSample]) -> Images:
    """A candidate's images of some samples, (b, 3, H, W) float32 in [0, 1]."""
    try:
        files = [out / image_file(key, sample.index) for sample in samples]
        pixels = [torch.from_numpy(read_pixels(file)) for file in files]
    except Unreadable as error:
        raise DirectAlignError(
            f"{out / 'images' / key}: {error}; remove it, and the same command makes it again"
        ) from error
    return torch.stack(pixels).permute(0, 3, 1, 2).float()


def _generate(
    candidate: Candidate,
    samples: Sequence[EvalSample],
    files: Sequence[Path],
    batch_size: int | None,
) -> None:
    """Batches do not depend on which images exist, so a resumed comparison has the same bits."""
    run = candidate.run
    assert run is not None
    size = batch_size or (1 if candidate.kind == "model" else run.evaluate.batch_size)
    kind = candidate.kind
    model = None if kind == "photographs" else load_run_model(run, candidate.trained)
    for first in range(0, len(samples), size):
        batch, targets = samples[first : first + size], files[first : first + size]
        if all(file.is_file() for file in targets):
            continue
        pairs = Pairs(tuple(e.prompt for e in batch), tuple(e.seed for e in batch))
        if kind in ("photographs", "autoencoded"):
            images = photographs(pairs)
            images = images if model is None else through_autoencoder(model, images, size)
        else:
            assert model is not None
            pairs = pairs.asked(candidate.phrase) if candidate.phrase else pairs
            edited = [each.source for each in batch if each.source is not None]
            images = generate(model, pairs.prompts, pairs.seeds, run.rollout, size, sources=edited)
        for file, image in zip(targets, images, strict=True):
            save_png(image, file)


def _check_size(first: Candidate, other: Candidate, sample: EvalSample, out: Path) -> None:
    (h, w), (h2, w2) = (load_images(out, e.key, [sample]).shape[-2:] for e in (first, other))
    if (h, w) != (h2, w2):
        is_model = other.kind != "images"
        remedy = "give --height and --width" if is_model else "compare images of one size"
        raise DirectAlignError(
            f"{first.label} makes images of {w}x{h} pixels and {other.label} of {w2}x{h2}: "
            f"their metrics are not comparable; {remedy}"
        )
