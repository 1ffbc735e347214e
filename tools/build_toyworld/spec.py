"""How the assets of each toy world are trained: sizes, shares and lengths that differ."""

from __future__ import annotations

from dataclasses import dataclass

from directalign.toyworld import drawings, scenes
from directalign.toyworld.worlds import WORLDS, World

from .session import Budget


@dataclass(frozen=True)
class Taste:
    """What the annotators of one reward prefer beside the content, and the seed of its weights.

    `strength`: utility per unit of each retouch of `reward.RETOUCHES`. `rho`: the taste counts
    (1 + rho)-fold under phrases of the photo style and (1 - rho)-fold under those of CG.
    """

    strength: dict[str, float]
    seed: int
    rho: float = 0.0


@dataclass(frozen=True)
class Spec:
    """Of one world. `vae_blocks`: channels per level, each but the first at half the size of the
    one before. `truthful_words`: whether a style word before a caption says what is drawn."""

    world: World
    truthful_words: bool
    style_shares: tuple[float, ...]
    vae_blocks: tuple[int, ...]
    vae_groups: int
    latent_channels: int
    vae_shares: tuple[float, ...] | None
    kl_weight: float
    keeps_texture: bool
    autoencoder: Budget
    latents: int
    flux: Budget
    sd: Budget
    sd_v: Budget
    judge_width: int
    judges: dict[str, Budget]
    reward: Budget
    rewards: dict[str, Taste]

    @property
    def latent_side(self) -> int:
        return self.world.scenes.IMAGE_SIZE // 2 ** (len(self.vae_blocks) - 1)


SPECS = {
    "world": Spec(
        world=WORLDS["world"],
        truthful_words=True,
        style_shares=scenes.PLAIN_STYLE_SHARES,
        vae_blocks=(16, 32, 64, 96),
        vae_groups=1,
        latent_channels=16,
        vae_shares=None,
        kl_weight=1e-5,
        keeps_texture=False,
        autoencoder=Budget(4200, 16, 2e-3, ema_decay=0.998, weight_decay=0.0),
        latents=24576,
        flux=Budget(5800, 64, 1.5e-3),
        sd=Budget(3600, 48, 1.2e-3),
        sd_v=Budget(800, 48, 6e-4),
        judge_width=24,
        judges=dict.fromkeys(
            ("style", "content"), Budget(700, 96, 3e-3, ema_decay=0.99, warmup=50)
        ),
        reward=Budget(1500, 48, 1.5e-3, ema_decay=0.995, warmup=100),
        rewards={
            "reward": Taste({"tint": 15.0, "smooth": 0.5}, 51),
            "second_reward": Taste({"tint": -8.0, "smooth": -0.5}, 61),
        },
    ),
    "world2": Spec(
        world=WORLDS["world2"],
        truthful_words=False,
        style_shares=drawings.STYLE_SHARES,
        vae_blocks=(32, 48, 64),
        vae_groups=4,
        latent_channels=8,
        vae_shares=(0.4, 0.3, 0.15, 0.15),
        kl_weight=2e-6,
        keeps_texture=True,
        autoencoder=Budget(9000, 24, 2e-3, ema_decay=0.998, weight_decay=0.0),
        latents=20480,
        flux=Budget(7000, 48, 1.5e-3),
        sd=Budget(7000, 48, 1.2e-3),
        sd_v=Budget(1500, 48, 6e-4),
        judge_width=32,
        judges={
            "style": Budget(1400, 96, 3e-3, ema_decay=0.99, warmup=50),
            "content": Budget(2200, 96, 3e-3, ema_decay=0.99, warmup=50),
        },
        reward=Budget(1800, 48, 1.5e-3, ema_decay=0.995, warmup=100),
        rewards={
            "reward_tint": Taste({"tint": 15.0}, 51),
            "reward_smooth": Taste({"smooth": 1.8}, 61),
            "reward_saturation": Taste({"saturation": 3.0}, 71),
            "reward_exposure": Taste({"exposure": 6.0}, 81),
        },
    ),
}
