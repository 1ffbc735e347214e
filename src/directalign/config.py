"""A run as typed, strict YAML: every field one sentence, unknown keys refused with the nearest name.

`load_run(file, overrides)` reads a recipe, lays it over its preset, applies `a.b=c` overrides and validates; every
mistake becomes one `DirectAlignError` line that names the file, the key, the value and the remedy.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from .presets import PRESETS, PresetName, merged

Positive = Annotated[int, Field(ge=1)]
Sigma = Annotated[float, Field(ge=0, le=1)]
Pair = Annotated[tuple[float, float], BeforeValidator(lambda given: tuple(given) if isinstance(given, list) else given)]
"""YAML has lists only; read strictly, a list is no tuple."""


class Strict(BaseModel):
    """Base of all sections: no unknown keys, no silent coercion of strings to numbers, immutable once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Lora(Strict):
    """Low-rank adapters (peft) on the denoiser."""

    rank: Positive = Field(default=16, description="Rank of the update.")
    alpha: Positive = Field(default=16, description="Scale numerator: the update is multiplied by alpha / rank.")
    targets: list[str] | None = Field(default=None, description="Layer names to adapt; none means the family's own list.")


class Model(Strict):
    """The text-to-image model and what of it is trained."""

    family: Literal["flux", "sd"] = Field(description="Architecture: flux (rectified flow) or sd (UNet, DDPM; epsilon or v).")
    path: str = Field(description="A diffusers folder, or an embedded pipeline: world:flux, world:sd, world:sd_v.")
    tune: Literal["lora", "full"] = Field(default="lora", description="Train adapters, or all weights of the denoiser.")
    lora: Lora = Field(default=Lora(), description="Adapter settings; read when tune is lora.")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Dtype of the frozen weights and of the forward pass; trained weights are float32."
    )
    gradient_checkpointing: bool = Field(default=False, description="Recompute activations of the denoiser and the VAE decoder in the backward pass.")


class Reward(Strict):
    """The model whose preference is followed."""

    name: Literal["clip", "pixels"] = Field(description="clip: a transformers CLIPModel folder; pixels: a plain statistic that ignores prompts.")
    path: str | None = Field(default=None, description="For clip: the folder, or world:reward for the embedded one.")
    statistic: Literal["brightness", "saturation", "redness"] | None = Field(default=None, description="For pixels: which statistic is rewarded.")
    scale: float = Field(default=1.0, description="Factor on every score (the official PickScore setting is 5: 100·cos/20).", gt=0)


class Ramp(Strict):
    """A number that runs linearly over the training window."""

    low_noise: float = Field(default=0.0, description="Value at the low-noise end of the window.")
    high_noise: float = Field(default=0.0, description="Value at the high-noise end of the window.")


class Branch(Strict):
    """The additive ramps of one branch: reward = (1 + k_pos)·pos − (1 + k_neg)·neg."""

    k_pos: Ramp = Field(default=Ramp(), description="Extra weight of the desired phrase.")
    k_neg: Ramp = Field(default=Ramp(), description="Extra weight of the undesired phrase.")


class WindowMoves(Strict):
    """The official grid: part of a shifted sampling grid, re-divided into linear points (arXiv 2509.06942)."""

    kind: Literal["window"] = "window"
    schedule_steps: Positive = Field(default=50, description="Steps of the grid that the window is cut from.")
    schedule_shift: float = Field(default=3.0, description="Shift of that grid: s' = shift·s / (1 + (shift − 1)·s).", gt=0)
    first: int = Field(default=5, description="Grid index of the high-noise end.", ge=0)
    last: int = Field(default=25, description="Grid index of the low-noise end.", ge=1)
    points: Annotated[int, Field(ge=11)] = Field(default=1000, description="Linear points that the window is divided into.")
    groundtruth_ratio: float = Field(default=0.9, description="A move crosses (1 − ratio) of the window at most.", ge=0, lt=1)


class UniformMoves(Strict):
    """Landing sigma uniform, jump fixed."""

    kind: Literal["uniform"] = "uniform"
    sigma_high: Sigma = Field(default=0.96, description="High-noise end of the window.")
    sigma_low: Sigma = Field(default=0.5, description="Low-noise end of the window.")
    jump: float = Field(default=0.02, description="|sigma_from − sigma_to| of every move.", gt=0, lt=1)


class ConstantGainMoves(Strict):
    """Landing sigma uniform, the start solved so that every move has the same |gain|."""

    kind: Literal["constant_gain"] = "constant_gain"
    sigma_high: Sigma = Field(default=0.96, description="High-noise end of the window.")
    sigma_low: Sigma = Field(default=0.5, description="Low-noise end of the window.")
    gain: float = Field(default=0.15, description="|gain|: how much of the network's residual reaches the recovered image.", gt=0)


Moves = Annotated[WindowMoves | UniformMoves | ConstantGainMoves, Field(discriminator="kind")]


class Words(Strict):
    """Control phrases that are put before the prompt: "Realistic photo. a red star"."""

    positive: list[str] = Field(default_factory=list, description="Desired phrases.")
    negative: list[str] = Field(default_factory=list, description="Undesired phrases; each list cycles at its own length.")
    order: Literal["cycle", "fixed", "average"] = Field(
        default="cycle", description="A phrase of each list per step in turn (official), always the first, or the mean over all."
    )


class Anchor(Strict):
    """Our anchored relative reward: (pos − neg) − (plain − reference)² / (2·tolerance)."""

    tolerance: float = Field(
        default=0.05, description="Deviation of the plain score, in its units, at which the anchor pulls as hard as the relative term.", gt=0
    )
    reference_updates: Positive = Field(default=5, description="First updates over which the reference, the mean plain score, is measured.")


class Noise(Strict):
    """The known noise that is injected."""

    source: Literal["rollout", "fresh"] = Field(
        default="rollout", description="The rollout's own initial noise (official), or a new draw; real images always take a new one."
    )
    scope: Literal["shared", "per_rank"] = Field(
        default="per_rank", description="shared: one noise for all samples and ranks (official); per_rank: every sample its own."
    )


class Method(Strict):
    """Direct-Align with an absolute, relative (SRPO) or anchored relative reward."""

    name: Literal["srpo"] = "srpo"
    form: Literal["absolute", "relative", "anchored"] = Field(
        default="relative",
        description="absolute: plain Direct-Align (positive phrases, else the bare prompt); relative: SRPO; anchored: SRPO with the bare score held.",
    )
    words: Words = Field(default=Words(), description="Control phrases.")
    branches: Literal["denoise", "inversion", "both"] = Field(default="both", description="Which branches a step takes; both land on the same sigma.")
    denoise: Branch = Field(default=Branch(), description="Ramps of the denoise branch.")
    inversion: Branch = Field(default=Branch(), description="Ramps of the inversion branch.")
    moves: Moves = Field(default=WindowMoves(), description="How pairs of noise levels are drawn.")
    injections: Positive = Field(default=1, description="Noise injections per clean image (eq. 6): the rollout is paid once.")
    margin: float | None = Field(default=None, description="Margin of the hinge; none takes the identity.")
    discount_shift: float | None = Field(default=None, description="Shift of the factor on the loss, shift(position in the window); none is no discount.", gt=0)
    noise: Noise = Field(default=Noise(), description="The known noise.")
    image_mapping: Literal["clamp", "min_max"] = Field(
        default="clamp", description="How decoded images reach the reward: clamped to [0, 1], or stretched per image."
    )
    embedded_guidance: float | None = Field(default=None, description="Guidance fed to the network in the training call.")
    cfg_scale: float = Field(default=1.0, description="Classifier-free guidance of the training call (two passes when not 1).", ge=0)
    truncate_timestep: Positive | None = Field(
        default=None, description="Show the network int(n·sigma)/n instead of sigma (official: 1000); the algebra stays exact."
    )
    anchor: Anchor = Field(default=Anchor(), description="Settings of the anchored form.")

    @model_validator(mode="after")
    def _words_fit_form(self) -> Method:
        positive, negative = self.words.positive, self.words.negative
        if self.form != "absolute" and not (positive and negative):
            raise ValueError(f"form {self.form} compares two phrasings: give words.positive and words.negative, or set form: absolute")
        return self


class Rollout(Strict):
    """How clean images are sampled, without gradient."""

    num_sampling_steps: Positive = Field(default=25, description="Euler or DDIM steps from pure noise.")
    shift: float | None = Field(default=None, description="Shift of the flow grid linspace(1, 0); none takes the checkpoint's own scheduler.", gt=0)
    embedded_guidance: float | None = Field(default=None, description="Guidance fed to the network.")
    cfg_scale: float = Field(default=1.0, description="Classifier-free guidance (two passes when not 1).", ge=0)
    height: int | None = Field(default=None, description="Pixels; none takes the checkpoint's own size.", ge=8)
    width: int | None = Field(default=None, description="Pixels; none takes the checkpoint's own size.", ge=8)


class Data(Strict):
    """Prompts, and real images for offline training."""

    prompts: str | None = Field(default=None, description="A .txt, .jsonl, .csv/.tsv or .parquet file of prompts, or world for the embedded list.")
    images: str | None = Field(default=None, description="A folder of real images with captions (same-named .txt, or metadata.jsonl): offline training.")
    offline_steps: Positive | None = Field(default=None, description="Use the images for this many first steps, then roll out; none uses them throughout.")
    batch_size: Positive = Field(default=1, description="Prompts per rank and forward pass.")
    strict: bool = Field(default=False, description="Refuse a set with an unreadable image instead of skipping it by name.")

    @model_validator(mode="after")
    def _something_to_train_on(self) -> Data:
        if self.prompts is None and self.images is None:
            raise ValueError("nothing to train on: give data.prompts (online) or data.images (offline)")
        if self.prompts is None and self.offline_steps is not None:
            raise ValueError("offline_steps goes online afterwards and needs data.prompts too")
        if self.offline_steps is not None and self.images is None:
            raise ValueError("offline_steps needs data.images")
        return self


class Train(Strict):
    """The optimiser and what is kept."""

    num_steps: Positive = Field(description="Optimiser updates.")
    learning_rate: float = Field(default=5e-6, description="Peak learning rate of AdamW.", gt=0)
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="Learning rate after the warm-up; linear and cosine fall to zero at num_steps."
    )
    warmup_steps: int = Field(default=0, description="Updates over which the learning rate rises from zero.", ge=0)
    betas: Pair = Field(default=(0.9, 0.999), description="AdamW averages.")
    weight_decay: float = Field(default=1e-4, description="AdamW decay.", ge=0)
    clip_norm: float = Field(default=0.1, description="Gradients are scaled down to this norm.", gt=0)
    accumulation: Positive = Field(default=1, description="Batches per update.")
    ema_decay: float | None = Field(default=None, description="Average of the trained weights; when set, samples, judges and saved weights use it.", gt=0, lt=1)
    checkpoint_every: int = Field(default=0, description="Updates between checkpoints; 0 keeps only the last.", ge=0)
    keep_checkpoints: Positive = Field(default=3, description="Newest checkpoints that are kept.")
    sample_every: int = Field(default=0, description="Updates between fixed-seed sample grids; 0 makes only the first and the last.", ge=0)
    sample_prompts: list[str] | None = Field(default=None, description="Prompts of the sample grids; none takes the first eight of the data.")


class Evaluate(Strict):
    """Measurement inside a run, on fixed prompts and seeds."""

    judge: Literal["world", "none"] = Field(default="none", description="world: the embedded style and content judges; none measures rewards and drift alone.")
    every: int = Field(default=0, description="Updates between measurements; 0 measures only before and after.", ge=0)
    num_pairs: Positive = Field(default=256, description="Prompt-seed pairs measured before and after.")
    pairs_during: Positive = Field(default=64, description="Of these, how many are measured during the run.")
    batch_size: Positive = Field(default=32, description="Images sampled at once.")


class Run(Strict):
    """A whole run."""

    name: str = Field(description="Shown on the page.", min_length=1)
    preset: PresetName | None = Field(default=None, description="Published values that this recipe is laid over.")
    seed: int = Field(default=0, description="Seed of every random draw.", ge=0)
    model: Model
    reward: Reward
    method: Method = Field(description="The alignment method.")
    rollout: Rollout = Field(default=Rollout(), description="How clean images are sampled.")
    data: Data
    train: Train
    evaluate: Evaluate = Field(default=Evaluate(), description="Measurement inside the run.")

    @model_validator(mode="before")
    @classmethod
    def _over_preset(cls, given: Any) -> Any:
        preset = given.get("preset") if isinstance(given, dict) else None
        return merged(PRESETS[preset], given) if isinstance(preset, str) and preset in PRESETS else given
