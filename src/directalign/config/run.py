"""A run as typed, strict YAML: every field one sentence, unknown keys refused with the nearest name.

`load_run(file, overrides)` reads a recipe, lays it over its preset, applies `a.b=c` overrides and validates; every
mistake becomes one `DirectAlignError` line that names the file, the key, the value and the remedy.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, model_validator

from .base import Pair, Positive, Size, Strict
from .methods import MethodConfig
from .model import ModelConfig
from .presets import PRESETS, PresetName, merged
from .rewards import ClipConfig, QwenVLConfig, RewardConfig, SingleRewardConfig

Share = Annotated[float, Field(ge=0, le=1)]


class DetectorConfig(Strict):
    """Boxes of a detector, judged by GenEval's rules (arXiv 2310.11513); for prompt sets that say what must be there."""

    name: Literal["detector"] = "detector"
    path: str = Field(
        description="A transformers folder or hub id of a Mask2Former, RT-DETR, D-FINE (classes of COCO) or OWLv2 (any words)."
    )
    threshold: Share | None = Field(
        default=None,
        description="Boxes with a lower score are nothing; none takes what is usual for the kind of detector.",
    )
    counting_threshold: Share | None = Field(
        default=None,
        description="The same for prompts that ask for a number; none takes what is usual.",
    )
    max_overlap: Share = Field(
        default=1.0,
        description="Boxes of a class that share more than this with a surer one (intersection over union) are dropped; 1 drops none.",
    )
    colors: ClipConfig | None = Field(
        default=None,
        description="The CLIP that names the colour of what was found; needed where prompts ask for colours.",
    )


AdherenceConfig = Annotated[DetectorConfig | QwenVLConfig, Discriminator("name")]
"""A `vlm` is the reward of that name: each fact, or a prompt without facts, becomes a question, answered yes where P(yes) is above one half."""


Allowance = Annotated[float, Field(gt=0)]


class EarlyStoppingConfig(Strict):
    """What a run may lose, and for how long it may get no better. With this section the best weights are left, not the last ones."""

    max_degradation: dict[str, Allowance] = Field(
        default_factory=dict,
        description="How far measured numbers may move for the worse from the base model's values, by name, e.g. {content: 0.03, color_drift: 0.05}.",
    )
    degradation_patience: Positive = Field(
        default=2,
        description="Measurements in a row over that budget before the run stops; none of them is ever kept.",
    )
    metric_for_best: str | None = Field(
        default=None,
        description="The measured number that says how good the weights are; none takes photo_rate, else the first held-out reward, else score_pos or reward.",
        min_length=1,
    )
    patience: Positive | None = Field(
        default=None,
        description="Measurements in a row without a better judge before the run stops; none never stops for it.",
    )
    score_patience: Positive | None = Field(
        default=None,
        description="Measurements in a row with an absolute score clearly below its peak before the run stops; needs no judge; none never stops for it.",
    )


class WandbConfig(Strict):
    """Weights & Biases."""

    project: str = Field(
        description="The project that the run belongs to.",
        min_length=1,
        max_length=128,
        pattern=r"^[^/\\#?,%:]+$",
    )
    entity: str | None = Field(
        default=None,
        description="The user or team whose project it is; none takes the one logged in.",
        min_length=1,
    )
    name: str | None = Field(
        default=None,
        description="What the run is called there; none takes the recipe's name.",
        min_length=1,
    )
    mode: Literal["online", "offline"] = Field(
        default="online",
        description="online sends while the run goes on; offline writes into the output folder, for `wandb sync`, and needs no login.",
    )
    tags: list[str] = Field(default_factory=list, description="Labels of the run there.")


class TrackioConfig(Strict):
    """trackio, on this machine or in a Space of Hugging Face."""

    project: str = Field(
        description="The project that the run belongs to: letters, digits, _ and -.",
        pattern=r"^[A-Za-z0-9_-]+$",
    )
    space: str | None = Field(
        default=None,
        description="owner/name of a Space that shows it; none keeps it on this machine, for `trackio show`.",
        pattern=r"^[^/\s]+/[^/\s]+$",
    )


class TrackersConfig(Strict):
    """Who shows the records; metrics.jsonl has them in any case."""

    tensorboard: bool = Field(default=True, description="Event files in the output folder.")
    wandb: WandbConfig | None = Field(
        default=None, description="Weights & Biases; needs pip install 'directalign[wandb]'."
    )
    trackio: TrackioConfig | None = Field(
        default=None, description="trackio; needs pip install 'directalign[trackio]'."
    )


class RolloutConfig(Strict):
    """How clean images are sampled, without gradient."""

    num_inference_steps: Positive = Field(
        default=25, description="Euler or DDIM steps from pure noise."
    )
    shift: float | None = Field(
        default=None,
        description="Shift of the flow grid linspace(1, 0); none takes the checkpoint's own scheduler.",
        gt=0,
    )
    embedded_guidance: float | None = Field(
        default=None, description="Guidance fed to the network."
    )
    cfg_scale: float = Field(
        default=1.0, description="Classifier-free guidance (two passes when not 1).", ge=0
    )
    height: int | None = Field(
        default=None, description="Pixels; none takes the checkpoint's own size.", ge=8
    )
    width: int | None = Field(
        default=None, description="Pixels; none takes the checkpoint's own size.", ge=8
    )
    sizes: list[Size] | None = Field(
        default=None,
        description="Several [height, width] for training, one drawn per update; height and width are then those of samples and measurements.",
        min_length=1,
    )


class DataConfig(Strict):
    """Prompts, and real images for offline training."""

    prompts: str | None = Field(
        default=None,
        description="A .txt, .jsonl, .csv/.tsv or .parquet file, a dataset hf:owner/name[@split][#column] or hf:folder, or world for the embedded list.",
    )
    images: str | None = Field(
        default=None,
        description="A folder of real images with captions (same-named .txt, or metadata.jsonl), or a dataset hf:...: offline training.",
    )
    buckets: list[Size] | None = Field(
        default=None,
        description="Shapes [height, width] for images of different aspect ratios, one per update; none crops all to the rollout's size.",
        min_length=1,
    )
    offline_steps: Positive | None = Field(
        default=None,
        description="Use the images for this many first steps, then roll out; none uses them throughout.",
    )
    batch_size: Positive = Field(default=1, description="Prompts per rank and forward pass.")
    strict: bool = Field(
        default=False,
        description="Refuse a set with an unreadable image instead of skipping it by name.",
    )

    @model_validator(mode="after")
    def _something_to_train_on(self) -> DataConfig:
        if self.prompts is None and self.images is None:
            raise ValueError(
                "nothing to train on: give data.prompts (online) or data.images (offline)"
            )
        if self.prompts is None and self.offline_steps is not None:
            raise ValueError("offline_steps goes online afterwards and needs data.prompts too")
        for key in ("offline_steps", "buckets"):
            if getattr(self, key) is not None and self.images is None:
                raise ValueError(f"{key} needs data.images")
        return self


class TrainConfig(Strict):
    """The optimiser and what is kept."""

    num_steps: Positive = Field(description="Optimiser updates.")
    learning_rate: float = Field(default=5e-6, description="Peak learning rate of AdamW.", gt=0)
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant",
        description="Learning rate after the warm-up; linear and cosine fall to zero at num_steps.",
    )
    warmup_steps: int = Field(
        default=0, description="Updates over which the learning rate rises from zero.", ge=0
    )
    betas: Pair = Field(default=(0.9, 0.999), description="AdamW averages.")
    weight_decay: float = Field(default=1e-4, description="AdamW decay.", ge=0)
    max_grad_norm: float = Field(
        default=0.1, description="Gradients are scaled down to this norm.", gt=0
    )
    gradient_accumulation_steps: Positive = Field(
        default=1, description="Batches per update on each rank."
    )
    global_batch_size: Positive | None = Field(
        default=None,
        description="Prompts per update over all ranks; the number of batches per update follows from it, and gradient_accumulation_steps stays 1.",
    )
    optimizer: Literal["adamw", "adamw8bit"] = Field(
        default="adamw", description="AdamW, or AdamW with 8-bit averages."
    )
    parallel: Literal["auto", "data", "sharded"] = Field(
        default="auto",
        description="On several ranks: data copies the network to each, sharded splits it (FSDP2); auto shards when tune is full.",
    )
    ema_decay: float | None = Field(
        default=None,
        description="Average of the trained weights; when set, samples, judges and saved weights use it.",
        gt=0,
        lt=1,
    )
    save_every: int = Field(
        default=0, description="Updates between checkpoints; 0 keeps only the last.", ge=0
    )
    keep_checkpoints: Positive = Field(default=3, description="Newest checkpoints that are kept.")
    sample_every: int = Field(
        default=0,
        description="Updates between fixed-seed sample grids; 0 makes only the first and the last.",
        ge=0,
    )
    sample_prompts: list[str] | None = Field(
        default=None,
        description="Prompts of the sample grids; none takes the first eight of the data.",
    )

    @model_validator(mode="after")
    def _one_way_to_accumulate(self) -> TrainConfig:
        if self.global_batch_size is not None and self.gradient_accumulation_steps != 1:
            raise ValueError(
                f"global_batch_size sets the batches per update, and so does gradient_accumulation_steps {self.gradient_accumulation_steps}: leave one of them out"
            )
        return self


class EvaluateConfig(Strict):
    """Measurement inside a run, on fixed prompts and seeds."""

    judge: Literal["world", "none"] = Field(
        default="none",
        description="world: the embedded style and content judges; none measures rewards and drift alone.",
    )
    every: int = Field(
        default=0,
        description="Updates between measurements; 0 measures only before and after.",
        ge=0,
    )
    num_samples: Positive = Field(
        default=256, description="Prompt-seed pairs measured before and after."
    )
    num_samples_during: Positive = Field(
        default=64, description="Of these, how many are measured during the run."
    )
    batch_size: Positive = Field(default=32, description="Images sampled at once.")
    rewards: dict[str, SingleRewardConfig] = Field(
        default_factory=dict,
        description="Held-out rewards by label: measured beside the one that is trained on, and never trained on.",
    )
    control_prompts: str | None = Field(
        default=None,
        description="Prompts that have nothing to do with the training (a file as data.prompts, or world): what leaks onto them is measured.",
    )
    diversity_prompts: int = Field(
        default=0,
        description="Prompts that are sampled four times each to measure how much their images differ; 0 measures none.",
        ge=0,
    )
    adherence: AdherenceConfig | None = Field(
        default=None,
        description="What judges afterwards, in directalign evaluate, whether images show what their prompts say; none judges nothing.",
    )


STEPS_OF_THE_ROLLOUT = ("last_steps", "grad_steps", "max_grad_steps", "trained_steps", "early_stop")
"""Settings of methods that count steps of the rollout, and so cannot exceed them."""


class RunConfig(Strict):
    """A whole run."""

    name: str = Field(description="Shown on the page.", min_length=1)
    preset: PresetName | None = Field(
        default=None, description="Published values that this recipe is laid over."
    )
    seed: int = Field(default=0, description="Seed of every random draw.", ge=0)
    model: ModelConfig
    reward: RewardConfig = Field(
        description="The model whose preference is followed, or a mixture of several."
    )
    method: MethodConfig = Field(description="The alignment method.")
    rollout: RolloutConfig = Field(
        default=RolloutConfig(), description="How clean images are sampled."
    )
    data: DataConfig
    train: TrainConfig
    evaluate: EvaluateConfig = Field(
        default=EvaluateConfig(), description="Measurement inside the run."
    )
    early_stopping: EarlyStoppingConfig | None = Field(
        default=None,
        description="When the run ends itself; none goes on to num_steps and leaves the last weights.",
    )
    trackers: TrackersConfig = Field(
        default=TrackersConfig(), description="Who shows the records besides metrics.jsonl."
    )

    @model_validator(mode="after")
    def _stopping_needs_measurements(self) -> RunConfig:
        if self.early_stopping is not None and self.evaluate.every == 0:
            raise ValueError(
                "early_stopping: judges the run by its measurements, and evaluate.every is 0: set it to the updates between two of them"
            )
        return self

    @model_validator(mode="after")
    def _narrow_weights_are_rounded_at_random(self) -> RunConfig:
        if self.model.trained_dtype == "bfloat16" and self.train.optimizer != "adamw8bit":
            raise ValueError(
                "model.trained_dtype: bfloat16 under train.optimizer: adamw loses updates smaller than its last digit: "
                "set train.optimizer: adamw8bit, which rounds at random, or trained_dtype: float32"
            )
        if self.model.trained_dtype == "bfloat16" and self.train.ema_decay is not None:
            raise ValueError(
                "train.ema_decay: an average kept in model.trained_dtype: bfloat16 stands still: leave it out, or set trained_dtype: float32"
            )
        if self.train.parallel == "sharded" and self.model.quantization is not None:
            raise ValueError(
                "train.parallel: sharded splits plain weights alone: leave model.quantization out, or set parallel: data"
            )
        return self

    @model_validator(mode="after")
    def _only_srpo_takes_images(self) -> RunConfig:
        if self.method.name != "srpo" and self.data.images is not None:
            raise ValueError(
                f"method {self.method.name} trains on samples of its own: remove data.images, or set method.name: srpo"
            )
        return self

    @model_validator(mode="after")
    def _steps_lie_in_the_rollout(self) -> RunConfig:
        available = self.rollout.num_inference_steps
        for key in STEPS_OF_THE_ROLLOUT:
            asked = getattr(self.method, key, None)
            if asked is not None and asked > available:
                raise ValueError(
                    f"method.{key} {asked} is more than rollout.num_inference_steps {available}: lower it, or sample in more steps"
                )
        return self

    @model_validator(mode="before")
    @classmethod
    def _over_preset(cls, given: Any) -> Any:
        preset = given.get("preset") if isinstance(given, dict) else None
        return (
            merged(PRESETS[preset], given)
            if isinstance(preset, str) and preset in PRESETS
            else given
        )
