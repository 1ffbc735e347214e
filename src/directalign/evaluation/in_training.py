"""Evaluation during training: images of fixed prompt-seed pairs, their metrics and their drift.

The metric functions are those of comparisons (`scores`). The reference of the colour drift are the
renderer's photographs of the same captions in the toy world, elsewhere the base model's images.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from .. import config, metrics
from ..interfaces import SINGLE_PROCESS, Judge, Model, ProcessGroup, Reward
from ..models import load_model
from ..models.lora import ReferenceModel
from ..rewards import reward_class
from ..stats import grouped_mean, rate_interval
from ..toyworld.worlds import WORLDS
from ..types import Images, PerSample
from . import eval_prompts, image_metrics, scores
from .eval_prompts import Pairs, named_styles, samples_of
from .generate import generate
from .references import Reference, photographs, references, through_autoencoder
from .results import summarise_images
from .scores import MetricFunction, MetricInput, per_image

DECIMALS = 5
"""Of per-image values in a record."""
COLOR_DRIFT, COLOR_DISTANCE = "color_drift", "color_distance"
OBEYED_SAMPLES = 48
"""Images that are asked for with unwanted phrases, at most."""
PHOTO_STATISTICS = ("sharpness", "high_frequency")
"""Statistics that are also given of photos only, where there is a style judge."""


def measured_metrics(run: config.RunConfig) -> dict[str, metrics.Metric]:
    """Every metric of all evaluations of the run by name, in the order of the records.

    Without style control, which is measured at the ends, and statistics of photos, which need some.
    A user-defined reward that does not read prompts lacks `score_pos` and `score_neg`. Metrics of
    users' files must have been loaded (`scores.user_metrics`).
    """
    settings, rewarded = run.evaluate, _score_names(run)
    judged: list[str] = []
    if settings.judge != "none":
        world = WORLDS[settings.judge]  # parts of the content are compared, not recorded
        judged = [name for name in world.judged if name not in world.scenes.CONTENT]
    own = [each.path.rpartition(":")[2] for each in settings.metrics]
    names = [*judged, *image_metrics.STATISTICS, *rewarded, *own, COLOR_DRIFT, COLOR_DISTANCE]
    if settings.control_prompts is not None:
        names += [f"{metrics.OFF_TOPIC}{name}" for name in (*rewarded, *own, COLOR_DRIFT)]
        if settings.control_prompts == settings.judge:
            names += [name for name, each in metrics.CONTROL.items() if each.is_rate]
    if settings.diversity_prompts:
        names.append(metrics.DIVERSITY)
    return {name: metrics.metric(name) for name in names}


def judge_of(run: config.RunConfig) -> str:
    """The metric by which the best weights are chosen: `early_stopping.metric_for_best`, else the
    most independent one: of the toy world's judge, else of the first held-out reward, else
    `score_of`."""
    if run.early_stopping is not None and run.early_stopping.metric_for_best:
        return run.early_stopping.metric_for_best
    judges = metrics.judging(measured_metrics(run).values())
    return next((each.name for each in judges if each.role != "trained"), score_of(run))


def score_of(run: config.RunConfig) -> str:
    """The absolute score of the trained reward: under the positive phrases if there are some."""
    return "score_pos" if "score_pos" in measured_metrics(run) else "reward"


def _score_names(run: config.RunConfig) -> list[str]:
    """Of the trained reward, its members, and the held-out rewards."""
    phrases, reward = run.method.control_phrases, run.reward
    members = reward.members if isinstance(reward, config.MixtureConfig) else []
    single = [member.reward for member in members] or [reward]
    reads_prompt = any(reward_class(each.name).reads_prompt for each in single)
    given = {metrics.POS: phrases.positive, metrics.NEG: phrases.negative}
    sides = [side for side, own in given.items() if own]
    names = ["reward", *(f"score{side}" for side in sides if reads_prompt)]
    names += [f"{metrics.MEMBER}{member.label}" for member in members]
    for label, each in run.evaluate.rewards.items():
        embedded = reward_class(each.name).image_embeddings
        names += [f"{metrics.HELD_OUT}{label}{side}" for side in ("", *(sides if embedded else ()))]
    return names


def sampled_pairs(run: config.RunConfig) -> tuple[Pairs, Pairs, Pairs | None]:
    """The pairs of a run's evaluations: its own, those for diversity, those of control prompts."""
    settings, control = run.evaluate, None
    prompts = eval_prompts.measured_prompts(run)
    if (source := settings.control_prompts) is not None:
        controls = eval_prompts.read_control_prompts(source, run.method.control_phrases)
        count = min(settings.num_samples_during, settings.num_samples)
        control = eval_prompts.control_pairs(controls, count)
    diverse = image_metrics.diversity_pairs(prompts, settings.diversity_prompts)
    sources = eval_prompts.measured_edits(run)
    fixed = eval_prompts.fixed_pairs(prompts, settings.num_samples, sources)
    return fixed, diverse, control


def references_of(run: config.RunConfig) -> list[Reference]:
    """What the run is compared with beside its base model."""
    if not run.evaluate.references:
        return []
    return references(run.method.control_phrases.positive, run.evaluate.judge != "none")


def obeyed_phrases(run: config.RunConfig) -> list[str]:
    """The negative phrases that style control asks with; in a toy world those only that name a
    style which its judge knows."""
    phrases = scores.plain_phrases(run.method.control_phrases.negative)
    if run.evaluate.judge == "none":
        return phrases
    known = {words[0] for words in WORLDS[run.evaluate.judge].scenes.STYLE_WORDS.values()}
    return [each for each in phrases if each in known]


def obeyed_pairs(run: config.RunConfig, fixed: Pairs) -> Pairs:
    """The first pairs with those phrases in turn before their prompts; none without phrases."""
    phrases = obeyed_phrases(run)
    return fixed.first(OBEYED_SAMPLES if phrases else 0).asked(*phrases)


def generated_prompts(run: config.RunConfig) -> list[str]:
    """Every prompt that the run's evaluations generate images from."""
    fixed, diverse, control = sampled_pairs(run)
    pairs = [fixed, diverse, *([] if control is None else [control]), obeyed_pairs(run, fixed)]
    phrases = [each.phrase for each in references_of(run) if each.phrase]
    pairs += [each.asked(phrase) for phrase in phrases for each in (fixed, diverse)]
    return [prompt for each in pairs for prompt in each.prompts]


@dataclass
class ReferencePairs:
    """Pairs that are evaluated; `make` makes the images that colour drift is measured against."""

    pairs: Pairs
    make: Callable[[Pairs], Images]

    @cached_property
    def images(self) -> Images:
        """Images (n, 3, H, W) of all pairs, made on first use."""
        return self.make(self.pairs)

    def per_image(
        self, images: Images, functions: Sequence[MetricFunction]
    ) -> dict[str, PerSample]:
        """Every metric per image, for images of the first pairs."""
        return per_image(functions, MetricInput(samples_of(self.pairs.first(len(images))), images))

    def summary(self, images: Images, each: Mapping[str, PerSample]) -> dict[str, Any]:
        """`summarise_images` of the metrics of `images`, and the colour drift of the whole set."""
        photos = {}
        if (is_photo := each.get("photo_rate")) is not None and is_photo.any():
            values = {name: each[name][is_photo > 0].double() for name in PHOTO_STATISTICS}
            photos = {metrics.OF_PHOTOS + n: float(own.mean()) for n, own in values.items()}
        reference = self.images[: len(images)]
        drift = {COLOR_DRIFT: image_metrics.color_drift(images, reference)}
        drift[COLOR_DISTANCE] = image_metrics.color_distance(images, reference)
        if self.pairs.group:
            drift = {metrics.OFF_TOPIC + COLOR_DRIFT: drift[COLOR_DRIFT]}
        found = summarise_images(each, self.pairs.prompts[: len(images)])
        return {**found, **drift, **photos}


class Measurer:
    """Evaluates the model's present weights on the run's fixed pairs and control prompts.

    Args:
        reward, judge: their metrics are left out if None.
        group: processes that share the images; rank 0 computes the metrics.
        held_out: the recipe's held-out rewards by label.
    """

    def __init__(
        self,
        run: config.RunConfig,
        model: Model,
        reward: Reward | None,
        judge: Judge | None,
        group: ProcessGroup = SINGLE_PROCESS,
        held_out: Mapping[str, Reward] | None = None,
    ) -> None:
        self.run, self.model, self.group = run, model, group
        settings, device = run.evaluate, next(model.denoiser.parameters()).device
        self.judge, self.functions = judge, list[MetricFunction]()
        if reward is not None:
            self.functions.append(scores.trained_reward_metrics(reward, run, device, model))
        for label, each in (held_out or {}).items():
            self.functions.append(scores.held_out_metrics(label, each, run, device, model))
        if judge is not None:
            names_styles = settings.control_prompts == settings.judge
            self.functions.append(partial(scores.judge_metrics, judge, names_styles))
        own = scores.user_metric_functions(settings.metrics, settings.batch_size)
        self.functions += [scores.pixel_statistics, *own]
        self.pairs, self._diversity_pairs, control = sampled_pairs(run)
        self._obeyed = obeyed_pairs(run, self.pairs)
        is_world = settings.judge != "none"
        self.fixed = ReferencePairs(self.pairs, photographs if is_world else self.base_images)
        self.control: ReferencePairs | None = None
        if control is not None:
            self.control = ReferencePairs(control, self.base_images)

    def prepare(self) -> None:
        """Make the base model's images before training if all weights are trained."""
        for each in (self.fixed, self.control):
            if self.run.model.tune == "full" and each and each.make == self.base_images:
                each.images = self._generate(each.pairs)

    def measure(self, num_samples: int) -> dict[str, Any]:
        """Metrics of the first `num_samples` pairs: {"photo_rate": {value, low, high, n},
        "color_drift", "reward", ..., "seconds"}.

        Rates have intervals, other metrics are means (see `measured_metrics`). With evaluations
        during the run, `during` has the metrics of the pairs used then, if those are fewer; with
        early stopping, `each` has the per-image values its rules read. Of all samples also style
        control (`obeys...`). Ranks other than 0 help to generate and return {}.
        """
        start = time.perf_counter()
        images, control_images = self.images(num_samples), None
        several = self._generate(self._diversity_pairs) if len(self._diversity_pairs) else None
        is_whole = num_samples == self.run.evaluate.num_samples and len(self._obeyed) > 0
        asked = self._generate(self._obeyed) if is_whole else None
        if self.control is not None:
            control_images = self._generate(self.control.pairs)
        for each in (self.fixed, self.control):
            _ = each and each.images  # made by all ranks
        if self.group.rank > 0:
            return {}
        each = self.per_image(images)
        record = self.fixed.summary(images, each)
        if self.control is not None and control_images is not None:
            controls = self.control.per_image(control_images, self.functions)
            record |= self.control.summary(control_images, controls)
        record |= self._diversity(several) | self._comparable(images, each)
        record |= self._obeys(asked) if asked is not None else {}
        return {**record, "seconds": time.perf_counter() - start}

    def references(self) -> dict[str, Any]:
        """{"best": the phrase whose asked images are best by `judge_of`, "rows", "seconds"}.

        A row has "kind", "label", "phrase" and the metrics of the images as in `measure`, of the
        same pairs. The base model is the one that has the present weights, so this is called before
        training. Ranks other than 0 return {}.
        """
        start, rows = time.perf_counter(), list[dict[str, Any]]()
        for each in references_of(self.run):
            images, diverse = self._of(each, self.pairs), self._diversity_pairs
            several = self._of(each, diverse) if len(diverse) else None
            if self.group.rank == 0:
                about = {"kind": each.kind, "label": each.label, "phrase": each.phrase}
                found = self.per_image(images)
                numbers = self.fixed.summary(images, found) | self._diversity(several)
                rows.append(about | numbers | self._comparable(images, found))
                rows[-1].pop("each", None)
        if self.group.rank > 0:
            return {}
        judge = judge_of(self.run)
        asked = {row["phrase"]: row[judge] for row in rows if row["phrase"] and judge in row}
        values = {p: v["value"] if isinstance(v, dict) else v for p, v in asked.items()}
        best = max(values, key=lambda phrase: values[phrase], default=None)
        return {"best": best, "rows": rows, "seconds": time.perf_counter() - start}

    def _of(self, reference: Reference, pairs: Pairs) -> Images:
        """A reference's images of pairs."""
        if reference.kind == "asked":
            return self._generate(pairs.asked(reference.phrase))
        images = photographs(pairs)
        if reference.kind == "photographs":
            return images
        return through_autoencoder(self.model, images, self.run.evaluate.batch_size)

    def _diversity(self, images: Images | None) -> dict[str, float]:
        """Diversity of images of the diversity pairs, of all and of photos only."""
        if images is None:
            return {}
        found = {metrics.DIVERSITY: image_metrics.diversity(images)}
        if self.judge is not None and self.run.evaluate.judge != "none":
            prompts = self._diversity_pairs.prompts
            is_photo = self.judge(images, prompts)["photo_rate"] > 0
            own = [prompt for prompt, photo in zip(prompts, is_photo, strict=True) if photo]
            distances = image_metrics.to_siblings(images[is_photo], own, image_metrics.rmse)
            if not distances.isnan().all():
                found[metrics.OF_PHOTOS + metrics.DIVERSITY] = float(distances.nanmean())
        return found

    def _obeys(self, images: Images) -> dict[str, Any]:
        """Whether images of the pairs with unwanted phrases are as those say: by the toy world's
        judge, else by the gap of the trained reward."""
        each, asked = self.per_image(images), self._obeyed.prompts
        prompts = self.pairs.prompts[: len(asked)]
        if self.run.evaluate.judge == "none":
            if not {"score_pos", "score_neg"} <= each.keys():
                return {}
            gap = each["score_neg"] - each["score_pos"]
            return {metrics.OBEYS_GAP: grouped_mean(gap.double(), prompts).as_dict()}
        if "photo_rate" not in each:
            return {}
        seen, styles = scores.delivered(each, asked), named_styles(asked)
        found = {metrics.OBEYS: rate_interval(seen, prompts).as_dict()}
        for style in dict.fromkeys(styles):
            places = [place for place, own in enumerate(styles) if own == style]
            own = rate_interval(seen[places], [prompts[place] for place in places])
            found[f"{metrics.OBEYS}_{style}"] = own.as_dict()
        return found

    def images(self, num_samples: int) -> Images:
        """Images (n, 3, H, W) of the first pairs, with the present weights."""
        return self._generate(self.pairs.first(num_samples))

    def base_images(self, pairs: Pairs) -> Images:
        """The base model's images of pairs; the base is loaded anew if all weights are trained."""
        if self.run.model.tune == "full":
            device = next(self.model.denoiser.parameters()).device
            return self._generate(pairs, load_model(self.run.model, device))
        with ReferenceModel(self.model.denoiser).active():
            return self._generate(pairs)

    def per_image(self, images: Images) -> dict[str, PerSample]:
        """Every metric per image, for images of the first pairs."""
        return self.fixed.per_image(images, self.functions)

    def _comparable(self, images: Images, each: Mapping[str, PerSample]) -> dict[str, Any]:
        """Metrics of the pairs evaluated during the run; per-image values for early stopping."""
        settings, judge = self.run.evaluate, judge_of(self.run)
        count = min(settings.num_samples_during, len(images))
        first = {name: values[:count] for name, values in each.items()}
        found: dict[str, Any] = {}
        if settings.references and judge in each and not metrics.metric(judge).is_rate:
            prompts = self.pairs.prompts[: len(images)]
            found["judged"] = {"name": judge, **grouped_mean(each[judge], prompts).as_dict()}
        if settings.every > 0 and count < len(images):
            found["during"] = self.fixed.summary(images[:count], first)
        if self.run.early_stopping is not None:
            watched = dict.fromkeys((judge, score_of(self.run)))
            found["each"] = {
                name: [round(value, DECIMALS) for value in first[name].tolist()]
                for name in watched
                if name in first
            }
        return found

    def _generate(self, pairs: Pairs, model: Model | None = None) -> Images:
        batch_size, rollout = self.run.evaluate.batch_size, self.run.rollout
        model = model or self.model
        pair = pairs.prompts, pairs.seeds
        return generate(model, *pair, rollout, batch_size, self.group, pairs.sources)
