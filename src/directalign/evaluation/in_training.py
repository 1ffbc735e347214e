"""One measurement: images of the fixed pairs, what the reward and the judges say of them, and how far they drifted.

Drift is measured against a reference set of images for the same prompts: real photographs of the captions in the
embedded world, which the renderer provides, and the base model's own images elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from .. import config
from ..diffusion.rng import generator_for
from ..interfaces import SINGLE_PROCESS, Judge, Model, ProcessGroup, Reward
from ..metrics import DIVERSITY, HELD_OUT, MEMBER, NEG, OFF_TOPIC, POS, Metric, metric
from ..models import load_model
from ..rewards import reward_class
from ..stats import rate_interval
from ..toyworld.scenes import STYLES, render, scenes_of
from ..types import Images, PerSample
from . import control_prompts, image_metrics
from .control_prompts import OffTopic
from .eval_prompts import Pairs, fixed_pairs, measured_prompts
from .generate import base_weights, generate
from .image_metrics import diversity, diversity_pairs
from .scores import BARE, held_out_scores, scored


def measured_metrics(run: config.RunConfig) -> dict[str, Metric]:
    """Every metric of a measurement of the run by name, in the order of the records.

    A reward that is a user's program is taken to read prompts; where it does not, two of these will be missing.
    """
    scores, settings = _scores(run), run.evaluate
    names = [
        *(
            ["photo_rate", "content", *(f"style_{name}" for name in STYLES)]
            if settings.judge == "world"
            else []
        )
    ]
    names += [*image_metrics.STATISTICS, *scores, "color_drift"]
    if settings.control_prompts is not None:
        names += [f"{OFF_TOPIC}{name}" for name in (*scores, "color_drift")]
    if settings.control_prompts == control_prompts.WORLD and settings.judge == "world":
        names += [control_prompts.STYLE_KEPT, control_prompts.CONTENT]
    return {
        name: metric(name)
        for name in [*names, *([DIVERSITY] if settings.diversity_prompts else [])]
    }


def judge_of(run: config.RunConfig) -> str:
    """The number that says how good the run's weights are: `early_stopping.metric_for_best`, else the best that the run measures.

    That is the world's photo rate, the first held-out reward, or the absolute score, which is trained on and so a judge for want of one.
    """
    named = run.early_stopping.metric_for_best if run.early_stopping is not None else None
    return named or next(
        iter(
            (
                *(["photo_rate"] if run.evaluate.judge == "world" else []),
                *_held_out_plain(run),
                score_of(run),
            )
        )
    )


def score_of(run: config.RunConfig) -> str:
    """The absolute score of what is trained on: under the positive phrases, or of the bare prompt where there are none."""
    return (
        "score_pos"
        if _reads_prompt(run.reward) and run.method.control_phrases.positive
        else "reward"
    )


def _scores(run: config.RunConfig) -> list[str]:
    """Those of the trained reward and of the held-out ones."""
    words, members = (
        run.method.control_phrases,
        run.reward.members if isinstance(run.reward, config.MixtureConfig) else [],
    )
    sides = [side for side, phrases in ((POS, words.positive), (NEG, words.negative)) if phrases]
    names = [
        "reward",
        *(f"score{side}" for side in sides if _reads_prompt(run.reward)),
        *(f"{MEMBER}{member.label}" for member in members),
    ]
    for label, reward in run.evaluate.rewards.items():
        names += [
            f"{HELD_OUT}{label}{side}"
            for side in ("", *(sides if reward_class(reward.name).image_embeddings else ()))
        ]
    return names


def _held_out_plain(run: config.RunConfig) -> list[str]:
    return [f"{HELD_OUT}{label}" for label in run.evaluate.rewards]


def _reads_prompt(reward: config.RewardConfig) -> bool:
    members = (
        [member.reward for member in reward.members]
        if isinstance(reward, config.MixtureConfig)
        else [reward]
    )
    return any(reward_class(member.name).reads_prompt for member in members)


RATES = ("photo_rate", "content")
MEANS = ("reward", "score_pos", "score_neg", *image_metrics.STATISTICS)
STYLE = "style_"
"""What a judge's answers about single styles begin with; their means are reported."""
PLACES = 5
"""Decimals of the numbers of single pairs in a record."""

Reference = Callable[[Pairs], Images]


class Measurer:
    """Measures the family's present weights on the first `num_samples` of the run's fixed pairs.

    `reward` and `judge` may be None: their numbers are then left out. `reference` makes the images that drift is measured
    against; None takes `photographs` where the world's judge is asked for, the base model's images elsewhere. `held_out` are
    the recipe's held-out rewards by label. Ranks that measure `together` share the images among them, and rank 0 judges.
    """

    def __init__(
        self,
        run: config.RunConfig,
        model: Model,
        reward: Reward | None,
        judge: Judge | None,
        reference: Reference | None = None,
        together: ProcessGroup = SINGLE_PROCESS,
        held_out: Mapping[str, Reward] | None = None,
    ) -> None:
        self.run, self.model, self.reward, self.judge, self.together, self.held_out = (
            run,
            model,
            reward,
            judge,
            together,
            held_out or {},
        )
        self.device = next(model.denoiser.parameters()).device
        prompts = measured_prompts(run.data)
        self.pairs = fixed_pairs(prompts, run.evaluate.num_samples)
        self._diversity_pairs = diversity_pairs(prompts, run.evaluate.diversity_prompts)
        self._reference = reference or (
            photographs if run.evaluate.judge == "world" else self.base_images
        )
        self._references: Images | None = None
        self.control_prompts = (
            OffTopic(run, self._generate, self.base_images)
            if run.evaluate.control_prompts is not None
            else None
        )

    def prepare(self) -> None:
        """Make the base model's images while the model is that model: where all weights are trained, it is in there no longer."""
        if self.run.model.tune == "full" and self._reference == self.base_images:
            self._references = self._generate(self.pairs)
        if self.run.model.tune == "full" and self.control_prompts is not None:
            self.control_prompts.prepare()

    def measure(self, num_samples: int) -> dict[str, Any]:
        """{"photo_rate": {value, low, high, n}, "content": {...}, "color_drift", "reward", "brightness", ..., "seconds"}.

        `reward` is the mean score under the plain prompt (of a mixture also that of each member, `reward_<label>`), `score_pos` and
        `score_neg` those under the control phrases; `held_out_<label>` of every held-out reward; `off_topic_...` where the recipe has
        such prompts; `diversity` when `evaluate.diversity_prompts` asks for it. A run that measures in between finds the same numbers
        of the pairs that it measures then under `during`, where those are fewer; one that may end itself finds under `each` what its
        rules read of every such pair. Ranks other than 0 help to make the images and get nothing back.
        """
        start = time.perf_counter()
        images, many = (
            self.images(num_samples),
            self._generate(self._diversity_pairs) if len(self._diversity_pairs) else None,
        )
        controls = self.control_prompts.images() if self.control_prompts else None
        _ = (
            self.references,
            self.control_prompts and self.control_prompts.base_images,
        )  # made by all ranks
        if self.together.rank > 0:
            return {}
        judged = self.per_image(images)
        measured = {
            **self.summary(images, judged),
            **(self.leaked(controls)[1] if controls is not None else {}),
        }
        diverse = {"diversity": diversity(many)} if many is not None else {}
        return {
            **measured,
            **diverse,
            **self._comparable(images, judged),
            "seconds": time.perf_counter() - start,
        }

    def _comparable(self, images: Images, each: Mapping[str, PerSample]) -> dict[str, Any]:
        """What a measurement on all pairs needs to be compared with one during the run, and any one to tell a change from noise."""
        settings = self.run.evaluate
        count = min(settings.num_samples_during, len(images))
        first = {name: values[:count] for name, values in each.items()}
        found: dict[str, Any] = {}
        if settings.every > 0 and count < len(images):
            found["during"] = self.summary(images[:count], first)
        if self.run.early_stopping is not None:
            watched = [
                name
                for name in dict.fromkeys((judge_of(self.run), score_of(self.run)))
                if name in first
            ]
            found["each"] = {
                name: [round(value, PLACES) for value in first[name].tolist()] for name in watched
            }
        return found

    def images(self, num_samples: int) -> Images:
        """Images (n, 3, H, W) of the first pairs, under the present weights."""
        return self._generate(self.pairs.first(num_samples))

    def _generate(self, pairs: Pairs) -> Images:
        return generate(
            self.model,
            pairs.prompts,
            pairs.seeds,
            self.run.rollout,
            self.run.evaluate.batch_size,
            self.together,
        )

    def base_images(self, pairs: Pairs) -> Images:
        """The same pairs from the model before training; where all weights are trained it is loaded anew for the purpose."""
        settings = self.run.rollout, self.run.evaluate.batch_size, self.together
        if self.run.model.tune == "full":
            base = load_model(self.run.model, self.device)
            return generate(base, pairs.prompts, pairs.seeds, *settings)
        with base_weights(self.model):
            return generate(self.model, pairs.prompts, pairs.seeds, *settings)

    @property
    def references(self) -> Images:
        """Reference images of all pairs, made when first asked for and kept."""
        if self._references is None:
            self._references = self._reference(self.pairs)
        return self._references

    @torch.no_grad()
    def per_image(self, images: Images) -> dict[str, PerSample]:
        """Every number there is one of per image, for images of the first pairs: scores, judgements, drift statistics."""
        prompts = self.pairs.first(len(images)).prompts
        judged = self.judge(images, prompts) if self.judge else {}
        return {
            **self._scores(images, prompts),
            **{name: answer.cpu() for name, answer in judged.items()},
            **image_metrics.statistics(images),
        }

    def summary(self, images: Images, each: Mapping[str, PerSample]) -> dict[str, Any]:
        """Means over the pairs, with intervals where they are rates, and the colour drift of the whole set."""
        rates = {name: rate_interval(each[name]).as_dict() for name in RATES if name in each}
        averaged = [
            name for name in each if name in MEANS or name.startswith((STYLE, MEMBER, HELD_OUT))
        ]
        means = {name: float(each[name].double().mean()) for name in averaged}
        return {
            **rates,
            "color_drift": image_metrics.color_drift(images, self.references[: len(images)]),
            **means,
        }

    def leaked(self, controls: Images) -> tuple[dict[str, PerSample], dict[str, Any]]:
        """What images of the off-topic prompts say: per image, and in sum."""
        assert self.control_prompts is not None
        each = self.control_prompts.per_image(controls, self._scores, self.judge)
        return each, self.control_prompts.summary(controls, each)

    def _scores(self, images: Images, prompts: tuple[str, ...]) -> dict[str, PerSample]:
        return {
            **self._trained_scores(images, prompts),
            **held_out_scores(self.held_out, images, prompts, self.run, self.device),
        }

    def _trained_scores(self, images: Images, prompts: tuple[str, ...]) -> dict[str, PerSample]:
        if self.reward is None:
            return {}
        words = self.run.method.control_phrases
        asked = {
            "reward": BARE,
            **(
                {"score_pos": words.positive, "score_neg": words.negative}
                if self.reward.reads_prompt
                else {}
            ),
        }
        return scored(
            self.reward, asked, images, prompts, self.run.evaluate.batch_size, self.device
        )


def photographs(pairs: Pairs) -> Images:
    """The renderer's own photographs of the pairs' captions, one fixed draw of place, light and texture each."""
    drawn = [
        render(scenes_of([prompt]), generator_for(seed))
        for prompt, seed in zip(pairs.prompts, pairs.seeds, strict=True)
    ]
    return torch.cat(drawn)
