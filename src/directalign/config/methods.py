"""The settings of each method, one class per paper, with `name` in a recipe as its tag.

A new method is one class here (a subclass of `ObjectiveConfig` with a `name`), which joins the
schema by itself, one file in methods/ and one line in `methods.METHODS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Union

from pydantic import Discriminator, Field, Tag, model_validator

from .base import (
    Guidance,
    NonNegativeFloat,
    PathText,
    Positive,
    PositiveFloat,
    Sigma,
    Strict,
    named_sections,
)
from .method_parts import (
    AnchorConfig,
    BranchConfig,
    CeilingConfig,
    ConstantGainNoiseLevels,
    ControlPhrases,
    FractionBelowOne,
    GridNoiseLevels,
    NoiseConfig,
    NoiseLevels,
    UniformNoiseLevels,
)


class ObjectiveConfig(Strict):
    """Settings that all methods share: form of the reward, control phrases, anchor."""

    ROLLOUT_STEPS: ClassVar[tuple[str, ...]] = ()
    """Fields that count steps of the rollout, and so cannot exceed rollout.num_inference_steps."""
    OFFLINE: ClassVar[bool] = False
    """Whether the method can train on real images (data.images) instead of rollouts."""
    PAIRS: ClassVar[bool] = False
    """Whether the method trains on preference pairs (data.pairs), and on nothing else."""
    REUSES_ROLLOUTS: ClassVar[bool] = False
    """Whether the method can train on x0 that weights of earlier updates made (rollout.reuse)."""
    ANY_SOLVER: ClassVar[bool] = False
    """Whether the method trains on finished images, however they are sampled (rollout.solver)."""
    DIFFERENTIATES_REWARD: ClassVar[bool] = True
    """Whether the method needs the reward's gradient with respect to the image."""

    form: Literal["absolute", "relative", "anchored"] = "absolute"
    """absolute: score under the positive phrases, or of the bare prompt; relative: positive minus
    negative; anchored: relative, with the bare score held at its start."""
    control_phrases: ControlPhrases = ControlPhrases()
    """Control phrases."""
    anchor: AnchorConfig = AnchorConfig()
    """Settings of the anchored form."""
    ceiling: CeilingConfig | None = None
    """For the relative and the anchored form; none pays without end."""
    margin: float | None = None
    """Margin of the hinge on the reward; none uses the reward itself."""
    image_mapping: Literal["clamp", "min_max"] = "clamp"
    """Range of the decoded images for the reward: clamped to [0, 1], or min-max scaled per
    image."""

    @model_validator(mode="after")
    def _check_phrases(self) -> ObjectiveConfig:
        positive, negative = self.control_phrases.positive, self.control_phrases.negative
        if self.form != "absolute" and not (positive and negative):
            raise ValueError(
                f"form {self.form} needs control_phrases.positive and control_phrases.negative: "
                "give both, or set form: absolute"
            )
        if self.ceiling is not None and self.form == "absolute":
            raise ValueError("ceiling is for the relative and the anchored form: remove it")
        if self.margin is not None and not self.DIFFERENTIATES_REWARD:
            raise ValueError(
                "margin belongs to a hinge on the reward, whose gradient this method does not use: "
                "remove it"
            )
        self.asked_phrases()
        return self

    def asked_phrases(self) -> list[str]:
        """Control phrases under which the generator itself is called. Raises: ValueError for
        missing or unusable ones."""
        asks = self.ceiling is not None and self.ceiling.asks
        return phrases_as_text("positive", self.control_phrases.positive) if asks else []


class AskedConfig(Strict):
    """How the base model is asked for its prediction under the positive phrases."""

    guidance: Guidance = 1.0
    """s of pred_pos + (s − 1)·(pred_pos − pred_other); 1 is none."""
    against: Literal["empty", "negative"] = "empty"
    """pred_other: under the empty prompt, or under the negative phrases."""
    guidance_below: Sigma = 1.0
    """Highest noise level with guidance."""

    def phrases(self, given: ControlPhrases) -> list[str]:
        """The phrases that are asked with. Raises: ValueError for missing or unusable ones."""
        negative = self.guidance != 1 and self.against == "negative"
        return [
            *phrases_as_text("positive", given.positive),
            *(phrases_as_text("negative", given.negative) if negative else []),
        ]


def phrases_as_text(side: str, phrases: list[str]) -> list[str]:
    """`phrases` if the generator can read them. Raises: ValueError for missing or learned ones."""
    if not phrases:
        raise ValueError(f"control_phrases.{side}: the base model is asked with them: add one")
    for phrase in phrases:
        if phrase.endswith(".safetensors"):
            raise ValueError(
                f"control_phrases.{side}: {phrase} is fitted to a reward, and the base model "
                "cannot read it: give text"
            )
    return phrases


class KeepConfig(ObjectiveConfig):
    """Prompts on which the model is held to its base instead of being rewarded."""

    keep_every: Annotated[int, Field(ge=2)] | None = None
    """n: one of n prompts carries a negative phrase, gets no reward, and has the base's prediction
    under that very prompt as its target, so that the model still obeys other phrases."""

    def asked_phrases(self) -> list[str]:
        phrases = super().asked_phrases()
        if self.keep_every is None:
            return phrases
        kept = phrases_as_text("negative", self.control_phrases.negative)
        return list(dict.fromkeys([*phrases, *kept]))


class KLConfig(KeepConfig):
    """The centre of a method's KL term."""

    kl_beta: NonNegativeFloat = 0.0
    """Weight of mean((pred − centre)²) at the noised final image of each sample (velocity-space
    KL); above 0 it costs one more call with gradient, and one without per averaged phrase and
    guidance."""
    kl_to: Literal["base", "base_with_phrases"] = "base"
    """Centre of the KL term: the base model under the same prompt, or under the positive
    phrases."""
    asked: AskedConfig = AskedConfig()
    """For kl_to: base_with_phrases."""

    @property
    def kl_asked(self) -> AskedConfig | None:
        """None for kl_to: base."""
        return self.asked if self.kl_to == "base_with_phrases" else None

    def asked_phrases(self) -> list[str]:
        by_kl = self.asked.phrases(self.control_phrases) if self.kl_asked and self.kl_beta else []
        return list(dict.fromkeys([*super().asked_phrases(), *by_kl]))

    @model_validator(mode="after")
    def _check_centre(self) -> KLConfig:
        if self.kl_to == "base" and self.asked != AskedConfig():
            raise ValueError("asked is for kl_to: base_with_phrases: set it, or remove asked")
        if self.keep_every is not None and not self.kl_beta:
            raise ValueError("keep_every holds by the KL term: set kl_beta, or remove keep_every")
        return self


class DirectGradientConfig(KLConfig):
    """Methods that differentiate the reward through calls of the network."""

    cfg_detach_negative: bool = False
    """No gradient through the negative pass of classifier-free guidance, as FlowBP's authors train:
    it saves that pass's activations."""
    kl_noise_levels: NoiseLevels | None = None
    """Levels of the KL term, which then has a network call and fresh noise of its own: low ones
    hold the detail while the reward acts at high ones. None: the levels that SRPO trains at; in
    other methods all from 0.02 on."""

    @model_validator(mode="after")
    def _check_levels(self) -> DirectGradientConfig:
        levels = self.kl_noise_levels
        if levels is not None and not self.kl_beta:
            raise ValueError("kl_noise_levels is for the KL term: set kl_beta, or remove it")
        if isinstance(levels, UniformNoiseLevels | ConstantGainNoiseLevels):
            low, high = levels.sigma_low, levels.sigma_high
            if low >= high:
                raise ValueError(
                    f"kl_noise_levels: sigma_low {low} is not below sigma_high {high}; swap or "
                    "change them"
                )
        return self


class SRPOConfig(DirectGradientConfig):
    """Direct-Align with an absolute, relative (SRPO) or anchored relative reward (arXiv
    2509.06942)."""

    OFFLINE = True
    REUSES_ROLLOUTS = True
    ANY_SOLVER = True

    name: Literal["srpo"] = "srpo"
    form: Literal["absolute", "relative", "anchored"] = "relative"
    """absolute: plain Direct-Align (positive phrases, or the bare prompt); relative: SRPO;
    anchored: SRPO with the bare score held at its start."""
    branches: Literal["denoise", "inversion", "both"] = "both"
    """Branches of a step; both end at the same sigma."""
    denoise: BranchConfig = BranchConfig()
    """Ramps of the denoise branch."""
    inversion: BranchConfig = BranchConfig()
    """Ramps of the inversion branch."""
    noise_levels: NoiseLevels = GridNoiseLevels()
    """How pairs of noise levels are drawn."""
    injections: Positive = 1
    """Noise injections per clean image (eq. 6); one rollout serves all."""
    discount_shift: PositiveFloat | None = None
    """Shift of the factor on the loss, shift(position in the window); none applies no discount."""
    noise: NoiseConfig = NoiseConfig()
    """The known noise."""
    kl_beta: NonNegativeFloat = 0.0
    """Weight of mean((pred − centre)²) at the same x_t and sigma, added to every loss
    (velocity-space KL, see kl_to)."""
    embedded_guidance: NonNegativeFloat | None = None
    """Guidance input of the network in the training call."""
    cfg_scale: Guidance = 1.0
    """Classifier-free guidance of the training call (two passes when not 1)."""
    truncate_timestep: Positive | None = None
    """n: the network gets int(n·sigma)/n instead of sigma (official: 1000); the recovery uses the
    exact sigma."""


class PromptDistillationConfig(KeepConfig):
    """The base model's own prediction under the positive phrases as the target, without a
    reward."""

    OFFLINE = True
    REUSES_ROLLOUTS = True
    ANY_SOLVER = True
    DIFFERENTIATES_REWARD = False

    name: Literal["prompt_distillation"] = "prompt_distillation"
    asked: AskedConfig = AskedConfig()
    """How the base model is asked."""
    noise_levels: NoiseLevels = UniformNoiseLevels(sigma_low=0.02)
    """How noise levels are drawn; each step's higher one is used."""
    noise: NoiseConfig = NoiseConfig(source="fresh")
    """The noise of the noised images."""
    embedded_guidance: NonNegativeFloat | None = None
    """Guidance input of the network in the training call."""
    cfg_scale: Guidance = 1.0
    """Classifier-free guidance of the training call (two passes when not 1)."""
    truncate_timestep: Positive | None = None
    """n: the network gets int(n·sigma)/n instead of sigma."""

    def asked_phrases(self) -> list[str]:
        asked = self.asked.phrases(self.control_phrases)
        return list(dict.fromkeys([*super().asked_phrases(), *asked]))


class ReFLConfig(DirectGradientConfig):
    """Gradient through one late step to the predicted x0 (arXiv 2304.05977)."""

    ROLLOUT_STEPS = ("last_steps",)

    name: Literal["refl"] = "refl"
    last_steps: Positive = 2
    """The trained step is drawn from this many last steps of the rollout (the paper: 10 of 40)."""


class DRaFTConfig(DirectGradientConfig):
    """Gradient through the last K steps of the rollout (arXiv 2309.17400)."""

    ROLLOUT_STEPS = ("grad_steps",)

    name: Literal["draft"] = "draft"
    grad_steps: Positive = 1
    """K: the last steps of the rollout that keep their gradient."""
    lv_samples: Positive = 1
    """DRaFT-LV: number of times the sample is noised anew and the last step repeated (the paper:
    2)."""

    @model_validator(mode="after")
    def _check_low_variance(self) -> DRaFTConfig:
        if self.lv_samples > 1 and self.grad_steps > 1:
            raise ValueError(
                f"lv_samples {self.lv_samples} repeats only the last step: set grad_steps: 1, or "
                "lv_samples: 1"
            )
        return self


class AlignPropConfig(DirectGradientConfig):
    """Gradient through a random number of last steps, activations recomputed (arXiv 2310.03739)."""

    ROLLOUT_STEPS = ("max_grad_steps",)

    name: Literal["alignprop"] = "alignprop"
    max_grad_steps: Positive | None = None
    """Largest truncation depth, drawn uniformly from 1; none uses the whole rollout."""


class DRTuneConfig(DirectGradientConfig):
    """Gradient through a few spaced steps, with the network's input detached (arXiv 2405.00760)."""

    ROLLOUT_STEPS = ("trained_steps", "early_stop")

    name: Literal["drtune"] = "drtune"
    trained_steps: Positive = 2
    """K: number of trained steps, equally spaced from a random first one on."""
    early_stop: Positive = 2
    """Sampling stops at a step drawn from this many last ones; the reward scores the predicted x0
    of that step."""


class LeapAlignConfig(DirectGradientConfig):
    """Gradient through two leaps along the sampled path (arXiv 2604.15311)."""

    name: Literal["leapalign"] = "leapalign"
    nested_scale: NonNegativeFloat = 0.3
    """Factor on the gradient into the first leap through the input of the second call (the paper:
    0.3)."""
    similarity_floor: PositiveFloat | None = 0.1
    """tau: weight of a sample = 1 / sum of its leaps' distances from the path, each at least tau;
    none gives equal weights."""


class FlowBPConfig(DirectGradientConfig):
    """Gradient of the reward at the sampled image through a few repeated steps of its path (arXiv
    2606.11075)."""

    ROLLOUT_STEPS = ("trained_steps",)

    name: Literal["flowbp"] = "flowbp"
    variant: Literal["sparse", "bridge", "lagrange"] = "sparse"
    """sparse: single steps; bridge: steps on both sides of a state that passes gradient on;
    lagrange: two quadratures of higher order, of rectified flow only."""
    trained_steps: Positive = 3
    """K: steps of the sampled path that are repeated with gradient (released for FLUX.1: 3 of 25,
    bridge 5); lagrange repeats two in each of its two intervals instead."""
    late_bias: NonNegativeFloat = 2.0
    """Step i of 1, ..., N is drawn with weight i to this power; 0 draws uniformly."""
    rescale: NonNegativeFloat = 1.0
    """1: gradient times (length of all steps / length of the drawn ones); 0: unchanged; linear
    between (released for lagrange: 0.5)."""
    nested_scale: NonNegativeFloat = 0.1
    """bridge, lagrange: factor on the gradient through the input of the call at the dividing
    state."""

    @model_validator(mode="after")
    def _check_bridge(self) -> FlowBPConfig:
        if self.variant == "bridge" and self.trained_steps < 2:
            raise ValueError(
                f"trained_steps {self.trained_steps}: variant bridge trains on both sides of a "
                "state; give at least 2 (released: 5)"
            )
        return self


class FlowGRPOConfig(KLConfig):
    """Policy gradient on stochastic rollouts with advantages within a prompt's group (arXiv
    2505.05470, 2505.07818)."""

    ROLLOUT_STEPS = ("trained_steps", "sde_window")
    DIFFERENTIATES_REWARD = False

    name: Literal["flow_grpo"] = "flow_grpo"
    group_size: Annotated[int, Field(ge=2)] = 8
    """Samples per prompt, compared with each other."""
    sde: Literal["ddim", "flow_grpo", "dance"] = "ddim"
    """Form of the stochastic step; flow_grpo and dance are for rectified flow."""
    noise_level: PositiveFloat = 0.7
    """Strength of the noise: eta of ddim, at most 1; a of flow_grpo (the paper: 0.7); eta of dance
    (the paper: 0.3)."""
    sde_window: Positive | None = None
    """Steps in a row that have noise and can be trained; the others are deterministic (MixGRPO,
    arXiv 2507.21802; released: 4 of 25). None: all but the last."""
    window_every: Positive = 25
    """Rollouts after which the window moves one step to lower noise, from the end back to the
    beginning (released: 25)."""
    same_noise: bool = False
    """One initial noise for all samples of a group (DanceGRPO); only the noise of the steps
    differs."""
    normalise: Literal["group", "batch"] = "group"
    """Advantages are divided by the standard deviation of the rewards of their own group, or of all
    rewards of the batch (Flow-GRPO's global_std)."""
    clip_range: PositiveFloat = 1e-3
    """The probability ratio (of the mean log-probability over dimensions) is clipped to 1 ±
    this."""
    trained_steps: Positive | None = None
    """Steps of the rollout that an update trains, drawn at random; none trains all with noise."""
    updates_per_rollout: Positive = 1
    """Updates per set of samples; each trains other steps of them."""
    kl_beta: NonNegativeFloat = 0.0
    """Weight of the KL divergence from the base model's steps (Flow-GRPO); 0 needs no base
    model."""
    kl_form: Literal["exact", "released"] = "exact"
    """exact: the divergence of the two Gaussians; released: Flow-GRPO's code, which leaves out the
    step's length and so is 5 to 28 times smaller."""

    @model_validator(mode="after")
    def _check_noise(self) -> FlowGRPOConfig:
        if self.sde_window is None and self.window_every != 25:
            raise ValueError("window_every moves a window: set sde_window, or remove it")
        if (self.trained_steps or 1) > (self.sde_window or self.trained_steps or 1):
            raise ValueError(
                f"trained_steps {self.trained_steps}, and sde_window {self.sde_window} has fewer: "
                "lower the one or raise the other"
            )
        if self.kl_form == "released" and self.sde == "ddim":
            raise ValueError("kl_form released is that of sde: flow_grpo; set kl_form: exact")
        if self.sde == "ddim" and self.noise_level > 1:
            raise ValueError(f"noise_level {self.noise_level}: with sde: ddim it is at most 1")
        return self


class RAFTConfig(KLConfig):
    """Fine-tuning with the pre-training loss on the best of several images of each prompt (arXiv
    2304.06767)."""

    REUSES_ROLLOUTS = True
    ANY_SOLVER = True
    DIFFERENTIATES_REWARD = False

    name: Literal["raft"] = "raft"
    candidates: Annotated[int, Field(ge=2)] = 8
    """Images per prompt, of which the one with the highest reward is kept."""
    noise_levels: NoiseLevels = UniformNoiseLevels(sigma_low=0.02)
    """How noise levels are drawn; each step's higher one is used."""
    kl_beta: NonNegativeFloat = 0.0
    """Weight of mean((pred − centre)²) at the same x_t and sigma, added to the loss
    (velocity-space KL, see kl_to)."""


class ForwardProcessConfig(KLConfig):
    """Methods that train on noised samples of an old policy, weighted by the advantages of a
    prompt's group."""

    ANY_SOLVER = True
    DIFFERENTIATES_REWARD = False

    group_size: Annotated[int, Field(ge=2)] = 8
    """Samples per prompt, compared with each other."""
    normalise: Literal["group", "batch"] = "group"
    """Advantages are divided by the standard deviation of the rewards of their own group, or of all
    rewards of the batch."""
    advantage_clip: PositiveFloat = 5.0
    """Advantages are clipped to ± this (released: 5)."""
    noise_levels: NoiseLevels = UniformNoiseLevels(sigma_low=0.02)
    """How noise levels are drawn; each step's higher one is used."""
    injections: Positive = 1
    """Noise injections per sample, each at its own level; one rollout serves all."""
    kl_beta: NonNegativeFloat = 0.0
    """Weight of mean((pred − centre)²) at the same x_t and sigma, added to every loss
    (velocity-space KL, see kl_to)."""


class DiffusionNFTConfig(ForwardProcessConfig):
    """Implicit positive and negative policies on the forward process (arXiv 2509.16117)."""

    name: Literal["diffusion_nft"] = "diffusion_nft"
    beta: PositiveFloat = 1.0
    """v± = v_old ± beta·(v − v_old) (released: 1, or 0.1)."""
    old_decay: FractionBelowOne = 0.5
    """Largest decay of the old policy, which samples: old ← decay·old + (1 − decay)·weights before
    each update; 0 samples from the model itself, without a copy."""
    old_decay_rise: PositiveFloat = 1e-3
    """Rise of that decay per update, from 0 on (released: 0.001 up to 0.5)."""


class AWMConfig(ForwardProcessConfig):
    """Advantage weighted matching: the pre-training loss as the log-probability of a clipped ratio
    (arXiv 2509.25050)."""

    name: Literal["awm"] = "awm"
    weighting: Literal["ghuber", "sigma", "uniform"] = "ghuber"
    """Log-probability of a sample with squared error e: ghuber −sigma·e^p / p (released), sigma
    −sigma·e, uniform −e."""
    huber_power: Annotated[float, Field(gt=0, le=1)] = 0.25
    """p of ghuber."""
    clip_range: PositiveFloat = 1.0
    """The ratio to the old policy's probability is clipped to 1 ± this (released: 1)."""
    old_decay: FractionBelowOne = 0.3
    """Largest decay of the old policy, which samples: old ← decay·old + (1 − decay)·weights before
    each update; 0 samples from the model itself, without a copy, and every ratio is 1."""
    old_decay_rise: PositiveFloat = 1e-3
    """Rise of that decay per update, from 0 on (released: 0.001 up to 0.3)."""
    old_kl_beta: NonNegativeFloat = 1.0
    """Weight of mean((pred − old policy's)²) at the same call (released: 1)."""


class DPOConfig(ObjectiveConfig):
    """Direct preference optimization from pairs of images, without a reward (arXiv 2311.12908,
    2501.13918)."""

    PAIRS = True
    ANY_SOLVER = True
    DIFFERENTIATES_REWARD = False

    name: Literal["dpo"] = "dpo"
    beta: PositiveFloat = 2000.0
    """Weight inside the sigmoid of the mean squared errors' changes: larger holds the model closer
    to its base (Diffusion-DPO: 2000 for Stable Diffusion 1.5, 5000 for SDXL)."""
    noise_levels: NoiseLevels = UniformNoiseLevels(sigma_low=0.02)
    """How noise levels are drawn; each step's higher one is used."""


class PythonMethodConfig(ObjectiveConfig):
    """A method of the user's own, with the settings that all methods share."""

    name: Literal["python"] = "python"
    path: PathText
    """Your class as file.py:Class, see interfaces.Method."""
    args: dict[str, Any] = {}
    """Keyword arguments of its constructor."""


DEFAULT_METHOD = "srpo"
"""Method of a section without a `name`."""


def _method_name(given: Any) -> str | None:
    """The tag of a method section."""
    is_dict = isinstance(given, dict)
    name = given.get("name", DEFAULT_METHOD) if is_dict else getattr(given, "name", None)
    return name if isinstance(name, str) else None


if TYPE_CHECKING:
    MethodConfig = Any
else:
    _sections = named_sections(ObjectiveConfig, [*globals().values()])
    _tagged = (Annotated[each, Tag(each.model_fields["name"].default)] for each in _sections)
    MethodConfig = Annotated[Union[tuple(_tagged)], Discriminator(_method_name)]  # noqa: UP007
