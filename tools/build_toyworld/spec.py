"""How the assets of each toy world are trained: sizes, shares and lengths that differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from PIL.Image import Image

from directalign.toyworld import drawings, scenes
from directalign.toyworld.worlds import WORLDS, World

from .session import Budget
from .sprites import draw_sheet


@dataclass(frozen=True)
class Taste:
    """What the annotators of one reward prefer beside the content, and the seed of its weights.

    `strength`: utility per unit of each of the world's retouches. `rho`: the taste counts
    (1 + rho)-fold under phrases of the photo style and (1 - rho)-fold under those of CG.
    """

    strength: dict[str, float]
    seed: int
    rho: float = 0.0


@dataclass(frozen=True)
class Captions:
    """The captioned scenes that a denoiser is trained on, `count` of them, drawn with `seed`.

    `shares`: of the styles behind plain captions. `words`: the share of captions with a style
    word; if `true`, their scenes have the styles in shares of `styled` (None: equally often) and
    the word names it, else it is any word. One caption in ten is empty.
    """

    count: int
    seed: int
    shares: tuple[float, ...]
    words: float
    true: bool
    styled: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Wear:
    """Largest losses and changes of the images that judges are trained on (`judges.degrade`).

    `side`: pixels after a loss of detail. `channels`: a shift of each channel alone instead of a
    colour cast of a given length.
    """

    side: int
    saturation: float
    contrast: float
    brightness: float
    noise: float
    channels: float | None = None


@dataclass(frozen=True)
class Spec:
    """Of one world.

    `sheet`: makes its drawings from the packages in a folder. `vae_blocks`: channels per level,
    each but the first at half the size of the one before. `flux`: trainings of the denoiser, each
    from the weights of the one before; in `encoders_only` the text encoders alone learn. `sd`:
    trainings of SD, each on the captions of that training of the FLUX; `sd_v` continues on the last
    one's. `sd_channels`: of its two levels; attention is in the outer or the inner one;
    `sd_distilled`: it learns what the FLUX predicts (`denoisers._ddpm_examples`); `sd_spacing`: of
    its few sampling steps, which trailing ones begin at the last level. `few_step`: distills the
    FLUX to four steps (`few_step.train_few_step`). `robust`: continues the first reward's training
    on harder images, and the others from there with their own tastes (`reward.train_reward`); empty
    to train each from new weights. `latent_reward`: distills the first reward
    (`latent_reward.train_latent_reward`). `vlm_reward`: its plain and its robust training
    (`vlm_reward.train_vlm`). `pools`: numbers of images of `autoencoder`, `judges` and
    `reward`, and of no style (`mixed`). `smoothing`: pixels of the box of the retouch `smooth`.
    """

    world: World
    sheet: Callable[[Path], Image] | None
    vae_blocks: tuple[int, ...]
    vae_groups: int
    latent_channels: int
    vae_shares: tuple[float, ...] | None
    kl_weight: float
    keeps_texture: bool
    autoencoder: Budget
    flux: Mapping[str, tuple[Captions, Budget]]
    encoders_only: str | None
    sd: Mapping[str, Budget]
    sd_v: Budget
    sd_channels: tuple[int, int]
    sd_attends_inside: bool
    sd_distilled: bool
    sd_spacing: str
    few_step: Budget | None
    wear: Wear
    judge_width: int
    judges: Mapping[str, Budget]
    reward: Budget
    latent_reward: Budget | None
    robust: tuple[Budget, Budget] | tuple[()]
    vlm_reward: tuple[Budget, Budget] | None
    retouches: Mapping[str, tuple[float, float]]
    smoothing: int
    rewards: Mapping[str, Taste]
    pools: Mapping[str, int]

    @property
    def latent_side(self) -> int:
        return self.world.scenes.IMAGE_SIZE // 2 ** (len(self.vae_blocks) - 1)


def shortened(spec: Spec, steps: int = 2) -> Spec:
    """Every training in a few steps on few images: tests the build, not what it makes."""
    few = Budget(steps, batch=4, learning_rate=1e-3, warmup=1)
    flux = {name: (replace(each, count=16), few) for name, (each, _) in spec.flux.items()}
    names = ("autoencoder", "sd_v", "reward")
    each = {"judges": dict.fromkeys(spec.judges, few), "sd": dict.fromkeys(spec.sd, few)}
    short = replace(spec, flux=flux, **each)
    short = replace(short, robust=(few, few) if spec.robust else ())
    short = replace(short, few_step=few if spec.few_step else None)
    short = replace(short, latent_reward=few if spec.latent_reward else None)
    short = replace(short, vlm_reward=(few, few) if spec.vlm_reward else None)
    return replace(short, pools=dict.fromkeys(spec.pools, 16), **dict.fromkeys(names, few))


_RETOUCHES = {
    "tint": (-0.12, 0.12),
    "smooth": (0.0, 1.0),
    "saturation": (-0.5, 0.5),
    "exposure": (-0.2, 0.3),
}
"""What annotators see of each image: warm or cold, smoothed, colourful or pale, bright or dark."""
_START_SHARES = (0.09, 0.85, 0.03, 0.03)
_MOSTLY_PHOTOS = (0.7, 0.2, 0.05, 0.05)

SPECS = {
    "world": Spec(
        world=WORLDS["world"],
        sheet=None,
        vae_blocks=(16, 32, 64, 96),
        vae_groups=1,
        latent_channels=16,
        vae_shares=None,
        kl_weight=1e-5,
        keeps_texture=False,
        autoencoder=Budget(4200, 16, 2e-3, ema_decay=0.998, weight_decay=0.0),
        flux={
            "flux": (
                Captions(24576, 31, scenes.PLAIN_STYLE_SHARES, words=0.4, true=True),
                Budget(5800, 64, 1.5e-3),
            )
        },
        encoders_only=None,
        sd={"flux": Budget(3600, 48, 1.2e-3)},
        sd_v=Budget(800, 48, 6e-4),
        sd_channels=(64, 96),
        sd_attends_inside=False,
        sd_distilled=False,
        sd_spacing="leading",
        few_step=Budget(140, 32, 1e-3, ema_decay=0.98, weight_decay=0.0, warmup=30),
        wear=Wear(28, 0.5, 0.15, 0.08, 0.05, channels=0.1),
        judge_width=24,
        judges=dict.fromkeys(
            ("style", "content"), Budget(700, 96, 3e-3, ema_decay=0.99, warmup=50)
        ),
        reward=Budget(1500, 48, 1.5e-3, ema_decay=0.995, warmup=100),
        latent_reward=Budget(600, 32, 1e-3, ema_decay=0.99, warmup=50),
        robust=(),
        vlm_reward=None,
        retouches={name: _RETOUCHES[name] for name in ("tint", "smooth")},
        smoothing=3,
        rewards={
            "reward": Taste({"tint": 15.0, "smooth": 0.5}, 51),
            "second_reward": Taste({"tint": -8.0, "smooth": -0.5}, 61),
        },
        pools={"autoencoder": 8192, "judges": 8192, "reward": 12288, "latent_reward": 4096},
    ),
    "world2": Spec(
        world=WORLDS["world2"],
        sheet=draw_sheet,
        vae_blocks=(32, 48, 64),
        vae_groups=4,
        latent_channels=8,
        vae_shares=(0.4, 0.3, 0.15, 0.15),
        kl_weight=2e-6,
        keeps_texture=True,
        autoencoder=Budget(9000, 24, 2e-3, ema_decay=0.998, weight_decay=0.0),
        flux={
            "flux_start": (
                Captions(20480, 31, _START_SHARES, words=0.15, true=False),
                Budget(12000, 48, 1.5e-3),
            ),
            "flux_words": (
                Captions(24576, 31, drawings.STYLE_SHARES, words=0.4, true=True),
                Budget(5500, 48, 1.5e-3),
            ),
            "flux_promptable": (
                Captions(16384, 37, drawings.STYLE_SHARES, 0.45, true=True, styled=_MOSTLY_PHOTOS),
                Budget(2000, 48, 7e-4),
            ),
            "flux": (
                Captions(12288, 33, drawings.STYLE_SHARES, words=0.4, true=False),
                Budget(1000, 32, 1e-3, ema_decay=0.99, warmup=30),
            ),
        },
        encoders_only="flux",
        sd={
            "flux_promptable": Budget(6000, 32, 1.5e-3, bfloat16=True),
            "flux": Budget(600, 32, 1e-3, ema_decay=0.99, warmup=30, bfloat16=True),
        },
        sd_v=Budget(1200, 32, 8e-4, bfloat16=True),
        sd_channels=(48, 128),
        sd_attends_inside=True,
        sd_distilled=True,
        sd_spacing="trailing",
        few_step=None,
        wear=Wear(30, 0.3, 0.12, 0.06, 0.04),
        judge_width=32,
        judges={
            "content": Budget(1400, 96, 3e-3, ema_decay=0.99, warmup=50),
            "style": Budget(2600, 96, 2e-3, ema_decay=0.99, warmup=50),
        },
        reward=Budget(1800, 48, 1.5e-3, ema_decay=0.995, warmup=100),
        latent_reward=None,
        robust=(
            Budget(700, 48, 8e-4, ema_decay=0.995, warmup=50),
            Budget(300, 48, 8e-4, ema_decay=0.99, warmup=50),
        ),
        vlm_reward=(
            Budget(700, 48, 1.5e-3, ema_decay=0.99, warmup=50),
            Budget(400, 48, 8e-4, ema_decay=0.99, warmup=50),
        ),
        retouches=_RETOUCHES,
        smoothing=5,
        rewards={
            "reward_tint": Taste({"tint": 15.0}, 51),
            "reward_smooth": Taste({"smooth": 1.8}, 61),
            "reward_saturation": Taste({"saturation": 3.0}, 71),
            "reward_exposure": Taste({"exposure": 6.0}, 81),
            "reward_tint_rho25": Taste({"tint": 15.0}, 51, rho=0.25),
            "reward_tint_rho50": Taste({"tint": 15.0}, 51, rho=0.5),
            "reward_tint_rho100": Taste({"tint": 15.0}, 51, rho=1.0),
        },
        pools={"autoencoder": 8192, "judges": 12288, "reward": 12288, "mixed": 4096, "vlm": 3072},
    ),
}
