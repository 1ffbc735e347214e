"""The evaluation engine: metric functions of one model's images, and the evaluation of rewards.

    MetricInput (samples, images, base images)  ->  per_image  ->  {metric name: (b,)}

Evaluation during training (`in_training`) and comparisons (`compare`) call the same functions. A
new metric is an entry in `metrics` and a function: for pixels one of `image_metrics.STATISTICS`,
else a `MetricFunction` here.

Held-out rewards are evaluated beside the trained one and never trained on: a trained score that
rises while these fall is reward hacking.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor

from .. import config, metrics
from ..data.image_io import load_sources
from ..interfaces import Judge, Model, Reward
from ..io.user_code import load_object
from ..rewards import load_reward
from ..rewards.black_box import PythonReward, load_function
from ..rewards.common import image_features, score_all
from ..rewards.mixture import MixReward
from ..rewards.soft_prompts import is_tokens_file
from ..types import DirectAlignError, Images, PerSample
from . import image_metrics
from .eval_prompts import EvalSample, named_styles
from .image_metrics import color_cast, cosine_distance, rmse, to_siblings


@dataclass(frozen=True)
class MetricInput:
    """Images (b, 3, H, W) in [0, 1] of b samples by the model `model`, all control or none.

    `base`: the base model's images of the same samples. `features`: image features by reward label,
    so that a base's features are computed once for all its candidates.
    """

    samples: Sequence[EvalSample]
    images: Images
    base: MetricInput | None = None
    model: str = ""
    features: dict[str, Tensor] = field(default_factory=dict)

    @property
    def prompts(self) -> tuple[str, ...]:
        return tuple(sample.prompt for sample in self.samples)

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(sample.task for sample in self.samples)

    @property
    def is_control(self) -> bool:
        return self.samples[0].is_control


MetricFunction = Callable[[MetricInput], Mapping[str, PerSample]]
"""Metrics by unprefixed name, each (b,), NaN where an image has none."""


@torch.no_grad()
def per_image(functions: Iterable[MetricFunction], inputs: MetricInput) -> dict[str, PerSample]:
    """All metrics of every image on the CPU; on control prompts named `off_topic_<name>`."""
    prefix = metrics.OFF_TOPIC if inputs.is_control else ""
    return {
        f"{prefix}{name}": values.cpu()
        for function in functions
        for name, values in function(inputs).items()
    }


def pixel_statistics(inputs: MetricInput) -> dict[str, PerSample]:
    """`image_metrics.STATISTICS`; none on control prompts."""
    return {} if inputs.is_control else image_metrics.statistics(inputs.images)


def compared_pixels(inputs: MetricInput) -> dict[str, PerSample]:
    """Statistics, length and parts of the colour cast, and the mean RMSE to other images of the
    same prompt; not on control prompts. RMSE and shift of the cast from the base model's images,
    where there are some.
    """
    images, found, cast = inputs.images, pixel_statistics(inputs), color_cast(inputs.images)
    if not inputs.is_control:
        found |= {"color_cast": cast.norm(dim=1), "red_cast": cast[:, 0]}
        found |= {"green_cast": cast[:, 1], "blue_cast": cast[:, 2]}
        found[metrics.DIVERSITY] = to_siblings(images, inputs.tasks, rmse)
    if inputs.base is not None:
        base = inputs.base.images
        found[metrics.BASE_RMSE] = rmse(images, base)
        found[metrics.BASE_CAST] = (cast - color_cast(base)).norm(dim=1)
    return found


def judge_metrics(judge: Judge, is_world: bool, inputs: MetricInput) -> Mapping[str, PerSample]:
    """The judge's answers. On control prompts, if those are the toy world's (`is_world`), whether
    style and content are as the prompt says."""
    if inputs.is_control and not is_world:
        return {}
    answers = judge(inputs.images, inputs.prompts)
    if not inputs.is_control:
        return answers
    return {"style_kept": delivered(answers, inputs.prompts), "content": answers["content"]}


def delivered(answers: Mapping[str, PerSample], prompts: Sequence[str]) -> PerSample:
    """Whether the toy world's judge sees the style that each prompt begins with, (b,)."""
    styles = enumerate(named_styles(prompts))
    return torch.stack([answers[f"style_{style}"][place] for place, style in styles])


BARE = ("",)
"""The bare prompt, with no phrase before it."""
Phrases = Sequence[str]


@dataclass(frozen=True)
class RewardMetrics:
    """Scores of one reward; each image is encoded once.

    `scores`: metric name and the phrases over which its score is averaged, each put before the
    prompt; names without a phrase are omitted. A reward that sees latents gets those that `model`
    encodes the images to. Of a mixture also `reward_<label>` of each member.
    `gap`: positive and negative phrases of `sgp_<label>`, the mean score under the former minus
    that under the latter. `label`: add distances between image features to the base's
    (`base_distance_<label>`) and to those of the same prompt (`diversity_<label>`), for rewards
    with image embeddings. Neither gap nor distances on control prompts.
    """

    reward: Reward
    scores: Mapping[str, Phrases]
    batch_size: int
    device: torch.device | str
    label: str | None = None
    gap: tuple[Phrases, Phrases] | None = None
    model: Model | None = None

    def __call__(self, inputs: MetricInput) -> Mapping[str, PerSample]:
        images, samples, size = inputs.images, inputs.samples, self.batch_size
        parts = [
            self._batch(images[i : i + size], samples[i : i + size])
            for i in range(0, len(images), size)
        ]
        found = {name: torch.cat([part[name] for part, _ in parts]) for name in parts[0][0]}
        features = [each for _, each in parts if each is not None]
        if self.label is None or inputs.is_control or not features:
            return found
        own = inputs.features[self.label] = torch.cat(features)
        found[metrics.DIVERSITY_FEATURES + self.label] = to_siblings(
            own, inputs.tasks, cosine_distance
        )
        if inputs.base is not None:
            if self.label not in inputs.base.features:
                self(inputs.base)
            base = inputs.base.features[self.label]
            found[metrics.BASE_FEATURES + self.label] = cosine_distance(own, base)
        return found

    def _batch(
        self, images: Images, samples: Sequence[EvalSample]
    ) -> tuple[dict[str, PerSample], Tensor | None]:
        """Scores of a batch, and its image features where the reward has some."""
        reward, seen, sources = self.reward, images.to(self.device), None
        prompts, is_control = [each.prompt for each in samples], samples[0].is_control
        edited = [each.source for each in samples if each.source is not None]
        if edited and getattr(reward, "reads_sources", False):
            sources = load_sources(edited, *images.shape[2:])
        if reward.sees == "latents":
            assert self.model is not None
            seen = self.model.encode_image(seen)
        features = image_features(reward, seen, sources)
        gap = self.gap if self.gap is not None and reward.reads_prompt and not is_control else ()
        phrases = list(dict.fromkeys(chain(*self.scores.values(), *gap)))
        starts = [f"{each}. " if each else "" for each in phrases]
        texts = [[start + prompt for prompt in prompts] for start in starts]
        members: Mapping[str, Tensor] = {}
        if isinstance(reward, MixReward):
            members = reward.each(features, texts)
            scores = reward.weighted(members)
        else:
            scores = score_all(reward, features, texts)
        by_phrase = dict(zip(phrases, scores.float(), strict=True))

        def mean_score(phrases: Phrases) -> PerSample:
            return torch.stack([by_phrase[each] for each in phrases]).mean(0).cpu()

        found = {name: mean_score(own) for name, own in self.scores.items() if own}
        for label, each in members.items():
            found[metrics.MEMBER + label] = each[phrases.index("")].float().cpu()
        if gap:
            found[f"{metrics.SGP}{self.label}"] = mean_score(gap[0]) - mean_score(gap[1])
        embedded = getattr(reward, "image_embeddings", False) and isinstance(features, Tensor)
        return found, features.float().cpu() if embedded else None


def trained_reward_metrics(
    reward: Reward, run: config.RunConfig, device: torch.device | str, model: Model | None = None
) -> RewardMetrics:
    """`reward` under the bare prompt, `score_pos` and `score_neg` under the control phrases."""
    phrases, scores = run.method.control_phrases, {"reward": BARE}
    if reward.reads_prompt:
        scores = {**scores, "score_pos": phrases.positive, "score_neg": phrases.negative}
    return RewardMetrics(reward, scores, run.evaluate.batch_size, device, model=model)


def held_out_metrics(
    label: str,
    reward: Reward,
    run: config.RunConfig,
    device: torch.device | str,
    model: Model | None = None,
) -> RewardMetrics:
    """`held_out_<label>` under the bare prompt; with image embeddings also `_pos` and `_neg`.

    Those cost no further encoding of the image. Learned control tokens are left out: they were
    fitted to another reward.
    """
    name, scores = f"{metrics.HELD_OUT}{label}", {f"{metrics.HELD_OUT}{label}": BARE}
    if getattr(reward, "image_embeddings", False):
        phrases = run.method.control_phrases
        sides = ((metrics.POS, phrases.positive), (metrics.NEG, phrases.negative))
        scores |= {name + side: plain_phrases(own) for side, own in sides}
    return RewardMetrics(reward, scores, run.evaluate.batch_size, device, model=model)


def compared_reward_metrics(
    label: str,
    reward: Reward,
    phrases: config.ControlPhrases,
    batch_size: int,
    device: torch.device | str,
    model: Model | None = None,
) -> RewardMetrics:
    """`score_<label>`, its style gap `sgp_<label>`, and distances between its image features."""
    gap = phrases.positive, phrases.negative
    scores = {metrics.SCORE + label: BARE}
    return RewardMetrics(reward, scores, batch_size, device, label, gap, model)


def plain_phrases(phrases: Phrases) -> list[str]:
    """Without files of learned tokens."""
    return [phrase for phrase in phrases if not is_tokens_file(phrase)]


LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def held_out_key(label: str) -> str:
    """Recipe key of a held-out reward."""
    return f"evaluate.rewards.{label}"


def check_labels(labels: Iterable[str]) -> None:
    """Raises: DirectAlignError for a label that makes an invalid or ambiguous name."""
    for label in labels:
        if not LABEL.fullmatch(label) or label.endswith((metrics.POS, metrics.NEG)):
            raise DirectAlignError(
                f"{held_out_key(label)}: a label has letters, digits, _ and - only and does not "
                f"end in {metrics.POS} or {metrics.NEG}; call it e.g. second"
            )


def load_held_out(settings: config.EvaluateConfig, device: torch.device | str) -> dict[str, Reward]:
    """The held-out rewards of a recipe by label, in its order."""
    check_labels(settings.rewards)
    return {
        label: load_reward(each, device, held_out_key(label))
        for label, each in settings.rewards.items()
    }


METRICS_KEY = "evaluate.metrics"
"""Recipe key of metrics in users' files: a list of "file.py:name"."""


def user_metrics(given: Sequence[config.UserMetricConfig]) -> list[metrics.Metric]:
    """Run the files of "file.py:name" and enter their metrics into the registry.

    A metric is a function of images (b, 3, H, W) float32 in [0, 1] on the CPU and b prompts that
    returns b finite numbers, or a class whose instances are such functions. Optional attributes:
    `label`, `unit` ("share" is displayed in percent), `higher_is_better` (True, False, or None for
    neither). The first paragraph of the docstring is the description.

    Raises: DirectAlignError for a missing file or name, an object that cannot be called, a name
    that is taken, and attributes of another type.
    """
    paths = [each.path for each in given]
    found = [_user_metric(path) for path in paths]
    for path, each in zip(paths, found, strict=True):
        reserved = each.name in metrics.METRICS or each.name.startswith(metrics.RESERVED)
        if reserved or [other.name for other in found].count(each.name) > 1:
            raise DirectAlignError(
                f"{METRICS_KEY}: {path}: another metric is called {each.name}; rename the function"
            )
        metrics.USER_METRICS[each.name] = each
    return found


def _user_metric(path: str) -> metrics.Metric:
    found, name = load_object(path, METRICS_KEY, "function"), path.rpartition(":")[2]
    if not callable(found):
        raise DirectAlignError(
            f"{METRICS_KEY}: {path} is a {type(found).__name__}, which cannot be called; name a "
            "function of images and prompts"
        )
    label = getattr(found, "label", name.replace("_", " ").capitalize())
    unit, higher = getattr(found, "unit", ""), getattr(found, "higher_is_better", None)
    if not (isinstance(label, str) and isinstance(unit, str) and higher in (True, False, None)):
        raise DirectAlignError(
            f"{METRICS_KEY}: {path} has label {label!r}, unit {unit!r}, higher_is_better "
            f"{higher!r}; give two texts, and True, False or None"
        )
    text = inspect.cleandoc(found.__doc__ or f"Computed by {path}.").split("\n\n")[0]
    role = "held_out" if higher else "drift"
    return metrics.Metric(name, label, role, higher, " ".join(text.split()), unit)


def user_metric_functions(
    given: Sequence[config.UserMetricConfig], batch_size: int
) -> list[MetricFunction]:
    """The functions of `user_metrics`, each called like a reward without gradient.

    One raises DirectAlignError if it fails, or does not return one finite number per image.
    """
    functions = list[MetricFunction]()
    for own, each in zip(given, user_metrics(given), strict=True):
        function = load_function(own.path, METRICS_KEY, own.args)
        reward = PythonReward(function, source=f"{METRICS_KEY}: {own.path}")
        functions.append(RewardMetrics(reward, {each.name: BARE}, batch_size, "cpu"))
    return functions
