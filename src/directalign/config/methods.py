"""The settings of each method, one class a paper, tagged by `name`; what they share is `ObjectiveConfig`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from .base import Positive, Sigma, Strict


class RampConfig(Strict):
    """A number that runs linearly over the training window."""

    low_noise: float = Field(default=0.0, description="Value at the low-noise end of the window.")
    high_noise: float = Field(default=0.0, description="Value at the high-noise end of the window.")


class BranchConfig(Strict):
    """The additive ramps of one branch: reward = (1 + k_pos)·pos − (1 + k_neg)·neg."""

    k_pos: RampConfig = Field(
        default=RampConfig(), description="Extra weight of the desired phrase."
    )
    k_neg: RampConfig = Field(
        default=RampConfig(), description="Extra weight of the undesired phrase."
    )


class GridNoiseLevels(Strict):
    """The official grid: part of a shifted sampling grid, re-divided into linear points (arXiv 2509.06942)."""

    kind: Literal["window"] = "window"
    schedule_steps: Positive = Field(
        default=50, description="Steps of the grid that the window is cut from."
    )
    schedule_shift: float = Field(
        default=3.0, description="Shift of that grid: s' = shift·s / (1 + (shift − 1)·s).", gt=0
    )
    first: int = Field(default=5, description="Grid index of the high-noise end.", ge=0)
    last: int = Field(default=25, description="Grid index of the low-noise end.", ge=1)
    points: Annotated[int, Field(ge=11)] = Field(
        default=1000, description="Linear points that the window is divided into."
    )
    groundtruth_ratio: float = Field(
        default=0.9, description="A move crosses (1 − ratio) of the window at most.", ge=0, lt=1
    )


class UniformNoiseLevels(Strict):
    """Landing sigma uniform, jump fixed."""

    kind: Literal["uniform"] = "uniform"
    sigma_high: Sigma = Field(default=0.96, description="High-noise end of the window.")
    sigma_low: Sigma = Field(default=0.5, description="Low-noise end of the window.")
    jump: float = Field(
        default=0.02, description="|sigma_from − sigma_to| of every move.", gt=0, lt=1
    )


class ConstantGainNoiseLevels(Strict):
    """Landing sigma uniform, the start solved so that every move has the same |gain|."""

    kind: Literal["constant_gain"] = "constant_gain"
    sigma_high: Sigma = Field(default=0.96, description="High-noise end of the window.")
    sigma_low: Sigma = Field(default=0.5, description="Low-noise end of the window.")
    gain: float = Field(
        default=0.15,
        description="|gain|: how much of the network's residual reaches the recovered image.",
        gt=0,
    )


NoiseLevels = Annotated[
    GridNoiseLevels | UniformNoiseLevels | ConstantGainNoiseLevels, Field(discriminator="kind")
]


class ControlPhrases(Strict):
    """Control phrases that are put before the prompt: "Realistic photo. a red star". One that ends in .safetensors is a file of learned tokens."""

    positive: list[str] = Field(default_factory=list, description="Desired phrases.")
    negative: list[str] = Field(
        default_factory=list, description="Undesired phrases; each list cycles at its own length."
    )
    order: Literal["cycle", "fixed", "average"] = Field(
        default="cycle",
        description="A phrase of each list per step in turn (official), always the first, or the mean over all.",
    )


class AnchorConfig(Strict):
    """Our anchored relative reward: (pos − neg) − (plain − reference)² / (2·tolerance)."""

    tolerance: float = Field(
        default=0.05,
        description="Deviation of the plain score, in its units, at which the anchor pulls as hard as the relative term.",
        gt=0,
    )
    reference_updates: Positive = Field(
        default=5,
        description="First updates over which the reference, the mean plain score, is measured.",
    )


class ObjectiveConfig(Strict):
    """Settings that all methods share: form, control phrases, anchor."""

    form: Literal["absolute", "relative", "anchored"] = Field(
        default="absolute",
        description="absolute: the score under the positive phrases, else the bare prompt; relative: positive minus negative; anchored: bare score held too.",
    )
    control_phrases: ControlPhrases = Field(
        default=ControlPhrases(), description="Control phrases."
    )
    anchor: AnchorConfig = Field(
        default=AnchorConfig(), description="Settings of the anchored form."
    )
    margin: float | None = Field(
        default=None, description="Margin of the hinge; none takes the identity."
    )
    image_mapping: Literal["clamp", "min_max"] = Field(
        default="clamp",
        description="How decoded images reach the reward: clamped to [0, 1], or stretched per image.",
    )

    @model_validator(mode="after")
    def _words_fit_form(self) -> ObjectiveConfig:
        positive, negative = self.control_phrases.positive, self.control_phrases.negative
        if self.form != "absolute" and not (positive and negative):
            raise ValueError(
                f"form {self.form} compares two phrasings: give control_phrases.positive and control_phrases.negative, or set form: absolute"
            )
        return self


class NoiseConfig(Strict):
    """The known noise that is injected."""

    source: Literal["rollout", "fresh"] = Field(
        default="rollout",
        description="The rollout's own initial noise (official), or a new draw; real images always take a new one.",
    )
    scope: Literal["shared", "per_rank"] = Field(
        default="per_rank",
        description="shared: one noise for all samples and ranks (official); per_rank: every sample its own.",
    )


class SRPOConfig(ObjectiveConfig):
    """Direct-Align with an absolute, relative (SRPO) or anchored relative reward (arXiv 2509.06942)."""

    name: Literal["srpo"] = "srpo"
    form: Literal["absolute", "relative", "anchored"] = Field(
        default="relative",
        description="absolute: plain Direct-Align (positive phrases, else the bare prompt); relative: SRPO; anchored: SRPO with the bare score held.",
    )
    branches: Literal["denoise", "inversion", "both"] = Field(
        default="both", description="Which branches a step takes; both land on the same sigma."
    )
    denoise: BranchConfig = Field(
        default=BranchConfig(), description="Ramps of the denoise branch."
    )
    inversion: BranchConfig = Field(
        default=BranchConfig(), description="Ramps of the inversion branch."
    )
    noise_levels: NoiseLevels = Field(
        default=GridNoiseLevels(), description="How pairs of noise levels are drawn."
    )
    injections: Positive = Field(
        default=1, description="Noise injections per clean image (eq. 6): the rollout is paid once."
    )
    discount_shift: float | None = Field(
        default=None,
        description="Shift of the factor on the loss, shift(position in the window); none is no discount.",
        gt=0,
    )
    noise: NoiseConfig = Field(default=NoiseConfig(), description="The known noise.")
    kl_beta: float = Field(
        default=0.0,
        description="Weight of mean((pred − base pred)²) at the same x_t and level, added to every loss (velocity-space KL to the base "
        "model); 0 makes no base prediction, otherwise one more network call without gradient per loss.",
        ge=0,
    )
    embedded_guidance: float | None = Field(
        default=None, description="Guidance fed to the network in the training call."
    )
    cfg_scale: float = Field(
        default=1.0,
        description="Classifier-free guidance of the training call (two passes when not 1).",
        ge=0,
    )
    truncate_timestep: Positive | None = Field(
        default=None,
        description="Show the network int(n·sigma)/n instead of sigma (official: 1000); the algebra stays exact.",
    )


class ReFLConfig(ObjectiveConfig):
    """Gradient through one late step to the one-step guess (arXiv 2304.05977)."""

    name: Literal["refl"] = "refl"
    last_steps: Positive = Field(
        default=2,
        description="The trained step is drawn from this many last steps of the rollout (the paper: 10 of 40).",
    )


class DRaFTConfig(ObjectiveConfig):
    """Gradient through the last K steps of the rollout (arXiv 2309.17400)."""

    name: Literal["draft"] = "draft"
    grad_steps: Positive = Field(
        default=1, description="K: the last steps of the rollout that keep their gradient."
    )
    lv_samples: Positive = Field(
        default=1,
        description="DRaFT-LV: the sample is noised anew for the last step until it was taken this often (the paper: 2).",
    )

    @model_validator(mode="after")
    def _low_variance_is_of_one_step(self) -> DRaFTConfig:
        if self.lv_samples > 1 and self.grad_steps > 1:
            raise ValueError(
                f"lv_samples {self.lv_samples} repeats the last step alone: set grad_steps: 1, or lv_samples: 1"
            )
        return self


class AlignPropConfig(ObjectiveConfig):
    """Gradient through a random number of last steps, activations recomputed (arXiv 2310.03739)."""

    name: Literal["alignprop"] = "alignprop"
    max_grad_steps: Positive | None = Field(
        default=None,
        description="Largest truncation depth, drawn uniformly from 1; none takes the whole rollout.",
    )


class DRTuneConfig(ObjectiveConfig):
    """Gradient through a few spread steps, the network's input cut off from it (arXiv 2405.00760)."""

    name: Literal["drtune"] = "drtune"
    trained_steps: Positive = Field(
        default=2,
        description="K: steps that are trained, equally spaced from a random first one on.",
    )
    early_stop: Positive = Field(
        default=2,
        description="Sampling stops at a step drawn from this many last ones; the reward sees the one-step guess there.",
    )


class LeapAlignConfig(ObjectiveConfig):
    """Gradient through two leaps along the sampled path (arXiv 2604.15311)."""

    name: Literal["leapalign"] = "leapalign"
    nested_scale: float = Field(
        default=0.3,
        description="Factor on the gradient that reaches the first leap through the input of the second call (the paper: 0.3).",
        ge=0,
    )
    similarity_floor: float | None = Field(
        default=0.1,
        description="tau: a sample counts 1 over the sum of its leaps' distances from the path, each at least this; none weighs all alike.",
        gt=0,
    )


class FlowBPConfig(ObjectiveConfig):
    """Gradient of the reward at the sampled image through a few repeated steps of its path: FlowBP-Sparse (arXiv 2606.11075)."""

    name: Literal["flowbp"] = "flowbp"
    trained_steps: Positive = Field(
        default=3,
        description="K: steps of the sampled path that are repeated with gradient (released for FLUX.1: 3 of 25).",
    )
    late_bias: float = Field(
        default=2.0,
        description="Step i of 1, ..., N is drawn with weight i to this power; 0 draws them uniformly.",
        ge=0,
    )
    rescale: float = Field(
        default=1.0,
        description="1 stretches the gradient by the length of all steps over that of the drawn ones, 0 leaves it; linear between.",
        ge=0,
    )


class FlowGRPOConfig(ObjectiveConfig):
    """Policy gradient on stochastic rollouts with advantages within a prompt's group (arXiv 2505.05470, 2505.07818)."""

    name: Literal["flow_grpo"] = "flow_grpo"
    group_size: int = Field(
        default=8, description="Samples per prompt, compared with each other.", ge=2
    )
    sde: Literal["ddim", "flow_grpo", "dance"] = Field(
        default="ddim",
        description="Form of the stochastic step; flow_grpo and dance are for rectified flow.",
    )
    noise_level: float = Field(
        default=0.7,
        description="Strength of the noise: eta of ddim, at most 1; a of flow_grpo (the paper: 0.7); eta of dance (the paper: 0.3).",
        gt=0,
    )
    same_noise: bool = Field(
        default=False,
        description="One initial noise for all samples of a group (DanceGRPO); the steps' own noise tells them apart.",
    )
    normalise: Literal["group", "batch"] = Field(
        default="group",
        description="Advantages are divided by the spread of the reward within their own group, or over the groups of the batch.",
    )
    clip_range: float = Field(
        default=1e-3,
        description="The ratio of probabilities (of their mean over dimensions) is clipped to 1 plus or minus this.",
        gt=0,
    )
    trained_steps: Positive | None = Field(
        default=None,
        description="Steps of the rollout that an update trains, drawn at random; none: all but the last.",
    )
    updates_per_rollout: Positive = Field(
        default=1, description="Updates that share one set of samples, taking turns at its steps."
    )
    kl_beta: float = Field(
        default=0.0,
        description="Weight of the divergence from the base model's steps (Flow-GRPO); 0 needs no base model.",
        ge=0,
    )

    @model_validator(mode="after")
    def _has_no_hinge_and_noise_that_fits(self) -> FlowGRPOConfig:
        if self.margin is not None:
            raise ValueError(
                "margin belongs to a hinge, and a policy gradient compares rewards with each other: remove it"
            )
        if self.sde == "ddim" and self.noise_level > 1:
            raise ValueError(
                f"noise_level {self.noise_level} exchanges more noise than there is: give sde ddim at most 1"
            )
        return self


class PythonMethodConfig(ObjectiveConfig):
    """A method of the user's own, with the settings that all methods share."""

    name: Literal["python"] = "python"
    path: str = Field(description="Your class as file.py:Class, see interfaces.Method.")
    args: dict[str, Any] = Field(
        default_factory=dict, description="Keyword arguments of its constructor."
    )


def _name_of(given: Any) -> str | None:
    """The tag of a method section: SRPO when it names none."""
    name = given.get("name", "srpo") if isinstance(given, dict) else getattr(given, "name", None)
    return name if isinstance(name, str) else None


MethodConfig = Annotated[
    Annotated[SRPOConfig, Tag("srpo")]
    | Annotated[ReFLConfig, Tag("refl")]
    | Annotated[DRaFTConfig, Tag("draft")]
    | Annotated[AlignPropConfig, Tag("alignprop")]
    | Annotated[DRTuneConfig, Tag("drtune")]
    | Annotated[LeapAlignConfig, Tag("leapalign")]
    | Annotated[FlowBPConfig, Tag("flowbp")]
    | Annotated[FlowGRPOConfig, Tag("flow_grpo")]
    | Annotated[PythonMethodConfig, Tag("python")],
    Discriminator(_name_of),
]
