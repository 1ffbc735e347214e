"""How far one network call misses: by its one-step guess, and by Direct-Align's image, at one noise level after another.

The recovered images come from the closed form. The ratio that is held against the formula comes from the step written
out, to the next level and back by the known noise, in the network's own float32: two ways that share no line.
"""

from __future__ import annotations

from ..diffusion.path import alpha, expand_like, to_noise, to_x0
from ..diffusion.recovery import inject, recover
from ..evaluation.image_metrics import sharpness
from ..evaluation.in_training import STYLE
from ..interfaces import Model, Judge, Reward
from ..types import Conditioning, Images, Latents, Noised, PathName, PerSample
from .running.records import Row
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
import torch
from torch import Tensor


HIGHEST = 0.99
"""No jump goes beyond this level: there is no signal left at 1 to recover."""
OTHER_PROMPTS = 3
"""How many wrong captions each clean image is scored under, to know what the reward gives for nothing."""


def predicted_ratio(path: PathName, sigma_from: float, sigma_to: float) -> float:
    """Error of `recovered` over that of x0_hat, |1 − sigma_to·alpha_from / (alpha_to·sigma_from)| (docs/method.md, section 1).

    On flow that is |sigma_from − sigma_to| / ((1 − sigma_to)·sigma_from).
    """
    level = torch.tensor([sigma_from, sigma_to], dtype=torch.float64)
    alpha_from, alpha_to = alpha(path, level).tolist()
    return abs(1 - sigma_to * alpha_from / (alpha_to * sigma_from))


def landings(sigma: float, jumps: Sequence[float]) -> list[float]:
    """Where jumps down and up from `sigma` land, rounded to 1e-6; those that leave [0, `HIGHEST`] are left out."""
    reached = [round(sigma + sign * jump, 6) for jump in jumps for sign in (-1, 1)]
    return [sigma_to for sigma_to in reached if 0 <= sigma_to <= HIGHEST]


def stepped(family: Model, noised: Noised, pred: Latents, sigma_to: PerSample) -> Latents:
    """Direct-Align's image without the closed form: step to `sigma_to`, subtract the known noise, divide by alpha_to."""
    x0_hat = to_x0(family.path, family.prediction, pred, noised.x_t, noised.sigma)
    noise_hat = to_noise(family.path, family.prediction, pred, noised.x_t, noised.sigma)
    alpha_to, noise_level = expand_like(alpha(family.path, sigma_to), pred), expand_like(sigma_to, pred)
    x_to = alpha_to * x0_hat + noise_level * noise_hat
    return (x_to - noise_level * noised.noise) / alpha_to


def rmse(values: Tensor, truth: Tensor) -> float:
    """Root mean square difference over everything."""
    return float((values - truth).double().square().mean().sqrt())


@dataclass(frozen=True)
class Bench:
    """Clean latents `x0` of `cond.prompts`, sampled from `noise`, and who looks at what is made of them.

    `cond` is what the network is told in the training call.
    """

    family: Model
    reward: Reward
    judge: Judge
    cond: Conditioning
    x0: Latents
    noise: Latents

    def clean(self) -> Row:
        """What the clean images themselves get, and `chance`: the mean score that they get under other captions."""
        prompts = list(self.cond.prompts)
        turned = [prompts[by:] + prompts[:by] for by in range(1, OTHER_PROMPTS + 1)]
        features = self.reward.encode(self.truth)
        chance = torch.stack([self.reward.score(features, wrong) for wrong in turned]).mean()
        return {**self.seen(self.x0), "chance": float(chance)}

    def errors(self, noise: Latents, sigma: float, jumps: Sequence[float]) -> Iterator[Row]:
        """A row for x0_hat at `sigma`, then one for `recovered` at every landing; `jump` is positive where noise is removed."""
        family, level = self.family, _levels(sigma, len(self.x0))
        noised = inject(family.path, self.x0, noise, level)
        pred = family.predict(noised.x_t, level, self.cond)
        x0_hat = to_x0(family.path, family.prediction, pred, noised.x_t, level)
        yield {"sigma": sigma, "image": "x0_hat", **self.seen(x0_hat)}
        for sigma_to in landings(sigma, jumps):
            landing = _levels(sigma_to, len(self.x0))
            by_steps = stepped(family, noised, pred, landing)
            ratio = rmse(by_steps, self.x0) / rmse(x0_hat, self.x0)
            row = {"sigma": sigma, "jump": round(sigma - sigma_to, 6), "image": "recovered"}
            recovered = recover(family.path, family.prediction, noised, pred, landing).x0
            yield {**row, "ratio": ratio, "predicted": predicted_ratio(family.path, sigma, sigma_to), **self.seen(recovered)}

    def seen(self, latents: Latents) -> Row:
        """How far latents and their pixels are from the clean ones, and what is still seen in the images.

        `reward` is the mean score, `agreement` its correlation over images with the clean images' scores; `content` the judge's,
        `style` the share of images whose style the judge names as it names the clean one's; `sharpness` the gradient energy.
        """
        images = self.images(latents)
        scores, judged = self._scores(images), self.judge(images, self.cond.prompts)
        away = {"latents_rmse": rmse(latents, self.x0), "pixels_rmse": rmse(images, self.truth)}
        agreement = torch.corrcoef(torch.stack([scores, self._scores(self.truth)]).double())[0, 1]
        same = torch.stack([(answer == self._judged[name]).float() for name, answer in judged.items() if name.startswith(STYLE)]).amin(0)
        kept = {"content": judged["content"].mean(), "style": same.mean(), "sharpness": sharpness(images).mean()}
        return {**away, "reward": float(scores.mean()), "agreement": float(agreement), **{name: float(value) for name, value in kept.items()}}

    def _scores(self, images: Images) -> PerSample:
        return self.reward.score(self.reward.encode(images), self.cond.prompts).cpu()

    @cached_property
    def truth(self) -> Images:
        """The clean images."""
        return self.images(self.x0)

    @cached_property
    def _judged(self) -> Mapping[str, PerSample]:
        return self.judge(self.truth, self.cond.prompts)

    def images(self, latents: Latents) -> Images:
        """Decoded and clamped to [0, 1]."""
        return self.family.decode(latents).float().clamp(0, 1)


def _levels(sigma: float, count: int) -> PerSample:
    return torch.full((count,), sigma, dtype=torch.float64)
