"""A whole run as typed, strict YAML. `load.load_run` reads it from a recipe, a preset and
overrides."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, model_validator

from .base import (
    BatchSize,
    DtypeName,
    Fraction,
    Free,
    Judge,
    Layout,
    Moved,
    NonNegative,
    NonNegativeFloat,
    Pair,
    PathText,
    Positive,
    PositiveFloat,
    Seed,
    Strict,
    Text,
)
from .method_parts import RolloutNoiseLevels
from .methods import MethodConfig
from .presets import PRESETS, PresetName, merged
from .rewards import ClipConfig, QwenVLConfig, RewardConfig, SingleRewardConfig
from .rollout import RolloutConfig, Sizes

KEPT_FULL = 3
"""Checkpoints of a run of all weights that are kept by default."""


class LoRAConfig(Strict):
    """Adapters (peft) on the denoiser."""

    type: Literal["lora", "lokr"] = "lora"
    """lora: low-rank updates; lokr: Kronecker products (LyCORIS), smaller files at equal rank."""
    use_dora: bool = False
    """DoRA: the norm of each row of the updated weight is trained too; slower, more memory."""
    init: PathText | None = None
    """A LoRA to start from: a .safetensors file of diffusers, ComfyUI or kohya's tools, or the
    folder of a run; none starts from the base model."""
    rank: Positive = 16
    """Rank of the update."""
    alpha: Positive = 16
    """Scale numerator: the update is multiplied by alpha / rank."""
    targets: Annotated[list[str], Field(min_length=1)] | None = None
    """Names of the layers to adapt; none uses the list of the architecture."""

    @model_validator(mode="after")
    def _check_type(self) -> LoRAConfig:
        if self.use_dora and self.type != "lora":
            raise ValueError("use_dora is for type: lora: set it, or remove use_dora")
        if self.init is not None and (self.use_dora or self.type != "lora"):
            raise ValueError("init starts a plain LoRA: remove init, or use_dora and type: lokr")
        return self


class ModelConfig(Strict):
    """The text-to-image model, and which of its weights are trained."""

    architecture: PathText
    """flux, sdxl, qwen_image, z_image and so on (the names in directalign.models.MODELS, see
    docs/architectures.md), or a class of your own: my_model.py:MyModel."""
    args: dict[str, Any] = {}
    """Keyword arguments of a class of your own, beside those that every model gets; for hidream
    llama, the folder or hub id of the Llama that its checkpoint comes without."""
    path: PathText
    """A diffusers folder, a hub id (owner/name), a single .safetensors file, or an embedded
    pipeline: world:flux, world:flux_turbo, world:sd, world:sd_v; world2:flux and so on."""
    components: PathText | None = None
    """For a single file: diffusers folder or hub id with its configs, tokenizers and missing
    parts."""
    revision: str | None = None
    """Branch, tag or commit on the hub; none uses the main branch."""
    variant: str | None = None
    """Variant of the weight files, for example fp16; none uses the default files."""
    tune: Literal["lora", "full"] = "lora"
    """Train adapters, or all weights of the denoiser."""
    lora: LoRAConfig = LoRAConfig()
    """Adapter settings; used when tune is lora."""
    dtype: DtypeName = "float32"
    """Dtype of the frozen weights and of the forward pass."""
    trained_dtype: DtypeName = "float32"
    """Dtype of the trained weights when tune is full; bfloat16 needs train.optimizer adamw8bit,
    which uses stochastic rounding."""
    quantization: Literal["8bit", "4bit"] | None = None
    """Store the denoiser's frozen weights in 8 or 4 bits; only with tune: lora."""
    gradient_checkpointing: Annotated[bool, Free] = False
    """Recompute activations of the denoiser and the VAE decoder in the backward pass."""
    block_swap: Annotated[Positive | None, Free] = None
    """Number of the denoiser's blocks whose frozen weights stay in main memory, and are copied to
    the device for each use; needs tune: lora and gradient_checkpointing."""
    compile: bool = False
    """Compile the denoiser's repeated blocks (torch.compile): the first updates are slow, the
    others faster."""
    attention: str | None = None
    """Attention backend of diffusers, for example native or flash; none uses the library's
    default."""
    text_encoders: Literal["keep", "offload", "free"] = "keep"
    """keep: on the device; offload: on the CPU between uses; free: deleted after all prompts of the
    run are encoded into a cache on disk."""

    @model_validator(mode="after")
    def _check_weights(self) -> ModelConfig:
        if self.lora.init is not None and self.tune == "full":
            raise ValueError(
                "lora.init starts an adapter, and tune: full trains none: set tune: lora, or "
                "remove lora.init"
            )
        if self.quantization is not None and self.tune == "full":
            raise ValueError(
                f"quantization {self.quantization} freezes the weights that tune: full trains: "
                "set tune: lora, or remove quantization"
            )
        if self.quantization is not None and (self.lora.use_dora or self.lora.type != "lora"):
            raise ValueError(
                f"quantization {self.quantization} is for plain LoRA: remove it, or "
                "lora.use_dora and lora.type: lokr, which read the weights themselves"
            )
        if self.block_swap is not None and (
            self.tune == "full" or self.compile or not self.gradient_checkpointing
        ):
            raise ValueError(
                f"block_swap {self.block_swap} is for frozen blocks that are recomputed, and not "
                "compiled: set tune: lora, gradient_checkpointing: true and compile: false, or "
                "remove block_swap"
            )
        if self.trained_dtype == "bfloat16" and (self.tune, self.dtype) != ("full", "bfloat16"):
            raise ValueError(
                "trained_dtype: bfloat16 needs tune: full and dtype: bfloat16; "
                "adapters are small and stay in float32"
            )
        if self.components is not None and not self.path.endswith(".safetensors"):
            raise ValueError(
                "components is for a single .safetensors file in path; a folder or hub id is "
                "complete: remove components"
            )
        return self


class DetectorConfig(Strict):
    """An object detector with GenEval's rules (arXiv 2310.11513); for prompt sets that list the
    objects to find."""

    name: Literal["detector"] = "detector"
    path: PathText
    """A transformers folder or hub id of a Mask2Former, RT-DETR, D-FINE (classes of COCO) or OWLv2
    (any words)."""
    threshold: Fraction | None = None
    """Boxes with a lower score are ignored; none uses the usual value of the detector type."""
    counting_threshold: Fraction | None = None
    """The same for prompts that state a number of objects; none uses the usual value."""
    max_overlap: Fraction = 1.0
    """Of two boxes of a class with a larger intersection over union, the one of lower score is
    dropped; 1 drops none."""
    colors: ClipConfig | None = None
    """CLIP that classifies the color of detected objects; required where prompts state colors."""


AdherenceConfig = Annotated[DetectorConfig | QwenVLConfig, Discriminator("name")]
"""A `vlm` is the reward of that name: each fact, or a prompt without facts, becomes a question;
P(yes) > 0.5 counts as yes."""


class EarlyStoppingConfig(Strict):
    """Rules that end a run early. With this section the best weights are exported, not the last
    ones."""

    max_degradation: dict[str, PositiveFloat] = {}
    """Largest change for the worse from the base model, by metric, e.g. {content: 0.03,
    color_drift: 0.05}; worse weights are never selected."""
    degradation_patience: Positive = 2
    """Consecutive measurements over max_degradation after which the run stops."""
    metric_for_best: Text | None = None
    """Metric that selects the best weights; none uses photo_rate, or the first held-out reward, or
    score_pos or reward."""
    patience: Positive | None = None
    """Consecutive measurements without a better metric_for_best after which the run stops; none
    disables this rule."""
    score_patience: Positive | None = None
    """Consecutive measurements with an absolute score clearly below its maximum after which the run
    stops; none disables this rule."""


class WandbConfig(Strict):
    """Weights & Biases."""

    project: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^/\\#?,%:]+$")]
    """Project of the run."""
    entity: Text | None = None
    """User or team that owns the project; none uses the one that is logged in."""
    name: Text | None = None
    """Name of the run there; none uses the recipe's name."""
    mode: Literal["online", "offline"] = "online"
    """online: uploads during the run; offline: writes to the output folder, for `wandb sync`,
    without login."""
    tags: list[str] = []
    """Tags of the run there."""


class TrackioConfig(Strict):
    """trackio, on this machine or in a Space of Hugging Face."""

    project: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
    """Project of the run: letters, digits, _ and -."""
    space: Annotated[str, Field(pattern=r"^[^/\s]+/[^/\s]+$")] | None = None
    """owner/name of a Space that displays it; none stores it on this machine, for `trackio
    show`."""


class TrackersConfig(Strict):
    """Experiment trackers, in addition to metrics.jsonl."""

    tensorboard: bool = True
    """Event files in the output folder."""
    wandb: WandbConfig | None = None
    """Weights & Biases; needs pip install 'directalign[wandb]'."""
    trackio: TrackioConfig | None = None
    """trackio; needs pip install 'directalign[trackio]'."""


class DataConfig(Strict):
    """Prompts, and real images for offline training."""

    prompts: Annotated[PathText | None, Moved] = None
    """A .txt, .jsonl, .csv/.tsv or .parquet file, a dataset hf:owner/name[@split][#column] or
    hf:folder, or a list of the package: world, world2, photographs."""
    images: PathText | None = None
    """A folder of images with captions (.txt of the same name, metadata.jsonl, or images.jsonl as
    directalign sample writes it), or a dataset hf:...; trains offline."""
    pairs: PathText | None = None
    """Preference pairs for method dpo: a .jsonl of prompt, chosen and rejected (images, relative to
    it), or a folder with pairs.jsonl, as directalign arena export --pairs writes it."""
    edits: PathText | None = None
    """For a model that edits images: a .jsonl of prompt, source (the image to edit) and optionally
    mask (white where the edit may change it), the images relative to it; trains on rollouts."""
    edit_targets: bool = False
    """Train offline on the edited images under the key target of data.edits, not on rollouts."""
    buckets: Sizes | None = None
    """Shapes [height, width] for images of different aspect ratios, one per update; none crops all
    to the rollout's size."""
    offline_steps: Positive | None = None
    """Number of first updates on the images, before updates on rollouts; none uses the images
    throughout."""
    batch_size: Annotated[BatchSize, Layout] = 1
    """Prompts per rank and forward pass."""
    strict: Annotated[bool, Free] = False
    """Refuse a set with an unreadable image instead of skipping that image with a warning."""

    @model_validator(mode="after")
    def _check_sources(self) -> DataConfig:
        given = [k for k in ("pairs", "edits", "prompts", "images") if getattr(self, k) is not None]
        if given[0:1] in (["pairs"], ["edits"]) and len(given) > 1:
            raise ValueError(
                f"{given[0]} take no other data: remove data.{given[1]}, or data.{given[0]}"
            )
        if not given:
            raise ValueError(
                "nothing to train on: give data.prompts (online) or data.images (offline)"
            )
        if self.edit_targets and self.edits is None:
            raise ValueError("edit_targets needs data.edits")
        if self.prompts is None and self.edits is None and self.offline_steps is not None:
            raise ValueError("offline_steps trains on rollouts afterwards and needs data.prompts")
        offline = self.images is not None or self.edit_targets
        if self.offline_steps is not None and not offline:
            raise ValueError("offline_steps needs data.images, or data.edit_targets: true")
        if self.buckets is not None and given == ["prompts"]:
            raise ValueError("buckets needs data.images")
        return self


class TrainConfig(Strict):
    """Optimizer, schedule, batches and checkpoints."""

    num_steps: Annotated[Positive, Free]
    """Optimizer updates."""
    learning_rate: PositiveFloat = 5e-6
    """Peak learning rate of AdamW."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up; linear and cosine fall to zero at num_steps."""
    warmup_steps: NonNegative = 0
    """Updates over which the learning rate rises from zero."""
    betas: Pair = (0.9, 0.999)
    """Betas of AdamW."""
    weight_decay: NonNegativeFloat = 1e-4
    """Weight decay of AdamW."""
    max_grad_norm: PositiveFloat = 0.1
    """Gradients are clipped to this norm."""
    gradient_accumulation_steps: Annotated[Positive, Layout] = 1
    """Batches per update on each rank."""
    global_batch_size: Annotated[Positive | None, Layout] = None
    """Prompts per update over all ranks, instead of gradient_accumulation_steps; sets the number of
    batches per update."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """AdamW, or AdamW with 8-bit moments."""
    parallel: Annotated[Literal["auto", "data", "sharded", "hybrid"], Layout] = "auto"
    """On several ranks: data copies the network to each, sharded splits it over all (FSDP2), hybrid
    over those of a node, with a copy on each node (HSDP); auto shards when tune is full."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of the moving average (EMA) of the trained weights; when set, samples, measurements and
    exports use the average."""
    save_every: Annotated[NonNegative, Free] = 0
    """Updates between checkpoints; 0 saves only the last."""
    keep_checkpoints: Annotated[Positive | None, Free] = None
    """Number of newest checkpoints to keep; none keeps all of a LoRA, which are small, and 3 with
    model.tune: full."""
    sample_every: Annotated[NonNegative, Free] = 0
    """Updates between fixed-seed sample grids; 0 makes only the first and the last."""
    sample_prompts: list[str] | None = None
    """Prompts of the sample grids; none uses the first eight of the data."""
    tf32: bool | None = None
    """TF32 in float32 matrix products and convolutions on CUDA (adapters, rewards, VAE); none: only
    with model.dtype bfloat16, whose own products are coarser."""
    deterministic: bool = False
    """Only kernels with one order of sums, and PyTorch's plain attention, so that a run on CUDA can
    be repeated and resumed bit by bit; slower."""

    @model_validator(mode="after")
    def _check_accumulation(self) -> TrainConfig:
        if self.global_batch_size is not None and self.gradient_accumulation_steps != 1:
            raise ValueError(
                "global_batch_size and gradient_accumulation_steps both set the batches per "
                "update: remove one of them"
            )
        return self


class UserMetricConfig(Strict):
    """A metric of your own."""

    path: PathText
    """my_metric.py:name of a function, class or object, called with images and prompts."""
    args: dict[str, Any] = {}
    """Keyword arguments of the function, or of the class when it is constructed."""


UserMetric = Annotated[
    UserMetricConfig,
    BeforeValidator(
        lambda given: {"path": given} if isinstance(given, str) else given,
        json_schema_input_type=str | UserMetricConfig,
    ),
]
"""A section, or only its path."""


class EvaluateConfig(Strict):
    """Measurements during a run, on fixed prompts and seeds."""

    judge: Judge = "none"
    """world, world2: the style and content classifiers of that toy world; none: rewards and drift
    only."""
    every: Annotated[NonNegative, Free] = 0
    """Updates between measurements; 0 measures only before and after the run."""
    prompts: PathText | None = None
    """Prompts of the measurements, as data.prompts; none: those of the training, in the toy worlds
    the captions that runs are measured on."""
    num_samples: Positive = 256
    """Images (prompt-seed pairs) measured before and after the run."""
    num_samples_during: Positive = 64
    """Images measured during the run, the first of num_samples."""
    batch_size: Annotated[BatchSize, Free] = 32
    """Images sampled at once."""
    rewards: dict[str, SingleRewardConfig] = {}
    """Held-out rewards by label: measured like the trained reward, and never trained on."""
    metrics: list[UserMetric] = []
    """Metrics of your own, each my_metric.py:function or my_metric.py:Class, or a section with
    path and args."""
    control_prompts: PathText | None = None
    """Prompts unrelated to the training (a file as data.prompts, or world, world2): any change on
    them is measured as leakage."""
    diversity_prompts: NonNegative = 0
    """Prompts that are sampled four times each to measure how much their images differ; 0 measures
    none."""
    references: Annotated[bool, Free] = True
    """Measure once, beside the base model, what the trained one is compared with: the base model
    asked with each positive control phrase, in the toy world also photographs."""
    adherence: Annotated[AdherenceConfig | None, Free] = None
    """Model that measures prompt adherence in directalign evaluate; none measures none."""


class RunConfig(Strict):
    """A whole run."""

    name: Annotated[Text, Free]
    """Title of the run on its page."""
    preset: Annotated[PresetName | None, Free] = None
    """Published values, which the keys of this recipe override."""
    seed: Seed = 0
    """Seed of every random draw."""
    model: ModelConfig
    reward: RewardConfig
    """The reward model, or a mixture of several."""
    method: MethodConfig
    """The alignment method."""
    rollout: RolloutConfig = RolloutConfig()
    """How clean images are sampled."""
    data: DataConfig
    train: TrainConfig
    evaluate: EvaluateConfig = EvaluateConfig()
    """Measurements during the run."""
    early_stopping: Annotated[EarlyStoppingConfig | None, Free] = None
    """Rules that end the run early; none trains for num_steps and exports the last weights."""
    trackers: Annotated[TrackersConfig, Free] = TrackersConfig()
    """Experiment trackers, in addition to metrics.jsonl."""

    @property
    def kept_checkpoints(self) -> int | None:
        """`train.keep_checkpoints`, resolved; None keeps all."""
        return self.train.keep_checkpoints or (KEPT_FULL if self.model.tune == "full" else None)

    @model_validator(mode="after")
    def _check_across_sections(self) -> RunConfig:
        """Rules between sections; the message names the key."""
        if self.early_stopping is not None and self.evaluate.every == 0:
            raise ValueError(
                "early_stopping: needs measurements, and evaluate.every is 0: set it to the "
                "updates between two measurements"
            )
        if self.model.trained_dtype == "bfloat16" and self.train.optimizer != "adamw8bit":
            raise ValueError(
                "model.trained_dtype: bfloat16 with train.optimizer: adamw loses updates smaller "
                "than its last digit: set train.optimizer: adamw8bit, which uses stochastic "
                "rounding, or trained_dtype: float32"
            )
        if self.model.trained_dtype == "bfloat16" and self.train.ema_decay is not None:
            raise ValueError(
                "train.ema_decay: a moving average in model.trained_dtype: bfloat16 never "
                "changes: remove it, or set trained_dtype: float32"
            )
        if self.train.deterministic and self.model.attention not in (None, "native"):
            raise ValueError(
                f"train.deterministic: model.attention {self.model.attention} has no fixed order "
                "of sums: remove model.attention"
            )
        plain = self.model.tune == "full" or (
            self.model.lora.type == "lora" and not self.model.lora.use_dora
        )
        parallel = self.train.parallel
        splits = parallel in ("sharded", "hybrid")
        if splits and not plain:
            raise ValueError(
                f"train.parallel: {parallel} is for plain LoRA and tune: full: set "
                "parallel: data, or remove model.lora.use_dora and model.lora.type"
            )
        for key in ("quantization", "block_swap"):
            if splits and getattr(self.model, key) is not None:
                raise ValueError(
                    f"train.parallel: {parallel} cannot split the weights of model.{key}: remove "
                    f"model.{key}, or set parallel: data"
                )
        return self

    @model_validator(mode="after")
    def _check_method(self) -> RunConfig:
        """Whether the method fits the data and the rollout."""
        method, rollout_steps = self.method, self.rollout.num_inference_steps
        offline = {"images": self.data.images is not None, "edit_targets": self.data.edit_targets}
        for key in [key for key, is_set in offline.items() if is_set and not method.OFFLINE]:
            raise ValueError(
                f"method {method.name} trains on rollouts only: remove data.{key}, or set "
                "method.name: srpo"
            )
        if self.data.pairs is not None and not method.PAIRS:
            raise ValueError(
                f"method {method.name} does not train on pairs: remove data.pairs, or set "
                "method.name: dpo"
            )
        if method.PAIRS and self.data.pairs is None:
            raise ValueError(
                f"method {method.name} trains on preference pairs: set data.pairs in the place of "
                "data.prompts and data.images"
            )
        if self.rollout.reuse > 1 and not method.REUSES_ROLLOUTS:
            remedy = "remove rollout.reuse, or set method.name: srpo"
            if method.name == "flow_grpo":
                remedy = f"set method.updates_per_rollout: {self.rollout.reuse} instead"
            raise ValueError(
                f"rollout.reuse: {self.rollout.reuse}, and method {method.name} trains on the "
                f"steps of a rollout of its own weights: {remedy}"
            )
        if self.rollout.training_steps is not None and not method.REUSES_ROLLOUTS:
            raise ValueError(
                f"rollout.training_steps: {self.rollout.training_steps}, and method {method.name} "
                "trains on the rollouts' own steps: set rollout.num_inference_steps instead"
            )
        for key in ("lora", "cache"):
            value = getattr(self.rollout, key)
            if value is not None and (method.PAIRS or not method.ANY_SOLVER):
                of = "pairs" if method.PAIRS else "the steps of a rollout of its own weights"
                raise ValueError(
                    f"rollout.{key}: {value}, and method {method.name} trains on {of}: remove "
                    f"rollout.{key}, or set method.name: srpo"
                )
        for key in method.ROLLOUT_STEPS:
            if (getattr(method, key) or 0) > rollout_steps:
                raise ValueError(
                    f"method.{key} {getattr(method, key)} is more than "
                    f"rollout.num_inference_steps {rollout_steps}: decrease it, or sample in more "
                    "steps"
                )
        return self

    @model_validator(mode="after")
    def _check_levels(self) -> RunConfig:
        method, solver = self.method, self.rollout.solver
        drawn = {key: getattr(method, key, None) for key in ("noise_levels", "kl_noise_levels")}
        own = [key for key, each in drawn.items() if isinstance(each, RolloutNoiseLevels)]
        if solver != "euler" and (own or not method.ANY_SOLVER):
            which = f"method.{own[0]} of kind rollout" if own else f"method {method.name}"
            raise ValueError(
                f"rollout.solver: {solver}, and {which} trains on the Euler steps of a rollout: "
                "set rollout.solver: euler"
            )
        if "noise_levels" in own:
            for key in ("rollout.sizes", "data.buckets"):
                part, _, name = key.partition(".")
                if getattr(getattr(self, part), name) is not None:
                    raise ValueError(
                        f"{key}: method.noise_levels of kind rollout are the levels of one size: "
                        "remove one of the two"
                    )
        return self

    @model_validator(mode="after")
    def _check_edits(self) -> RunConfig:
        """With edits, every prompt that is sampled needs a source."""
        without = {
            "rollout.sizes": self.rollout.sizes,
            "train.sample_prompts": self.train.sample_prompts,
            "evaluate.control_prompts": self.evaluate.control_prompts,
            "evaluate.diversity_prompts": self.evaluate.diversity_prompts,
            "method.ceiling": self.method.ceiling and self.method.ceiling.gap is None,
        }
        for key in [key for key, is_set in without.items() if is_set and self.data.edits]:
            raise ValueError(f"{key}: not supported with data.edits: remove it")
        return self

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, given: Any) -> Any:
        preset = given.get("preset") if isinstance(given, dict) else None
        if isinstance(preset, str) and preset in PRESETS:
            return merged(PRESETS[preset], given)
        return given


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of a recipe, in which a preset may replace the method section."""
    text = json.dumps(RunConfig.model_json_schema())
    schema = json.loads(text.replace("\\n", " "))  # descriptions of several lines
    schema["required"].remove("method")
    schema["anyOf"] = [{"required": ["method"]}, {"required": ["preset"]}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
