"""The settings of each reward, one class each, with `name` in a recipe as its tag; `Mix` combines several.

A new reward's class here joins the schema by itself; its code is one file and one line in `rewards/__init__.py`. What a
score means and which published files fit is stated in rewards/<module>.py. A `path` with the suffix of a weight file is
that file, on this machine or on the hub (owner/name/file.pt); any other is a folder, a hub id, or embedded (world:...).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import Discriminator, Field, model_validator

from .base import DtypeName, Positive, Strict
from .methods import AnchorConfig, ControlPhrases


class Scaled(Strict):
    """What every single reward has."""

    scale: float = Field(
        default=1.0,
        description="Factor on every score (the official PickScore setting is 5: 100·cos/20).",
        gt=0,
    )


class Frozen(Scaled):
    """What every reward with a network of its own has."""

    path: str = Field(
        description="A transformers folder, a hub id, a published weight file here or on the hub (owner/name/file.pt), or an embedded world:..."
    )
    processor: str | None = Field(
        default=None,
        description="Folder or hub id of tokenizer and image settings, for weights that come without.",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Recompute activations of the reward in the backward pass."
    )


class ClipConfig(Frozen):
    """Cosine of image and prompt by a CLIP: CLIP itself, PickScore, HPSv2.1, world:reward."""

    name: Literal["clip"] = "clip"
    activation: Literal["gelu", "quick_gelu"] | None = Field(
        default=None,
        description="Of an open_clip file without its open_clip_config.json: quick_gelu for OpenAI's, DFN's, MetaCLIP's; gelu for LAION's.",
    )
    project_out: str | None = Field(
        default=None,
        description="A .safetensors file of directions in image features that the reward shall not see.",
    )


class SiglipConfig(Frozen):
    """Cosine of image and prompt by a SigLIP or SigLIP 2."""

    name: Literal["siglip"] = "siglip"
    project_out: str | None = Field(
        default=None,
        description="A .safetensors file of directions in image features that the reward shall not see.",
    )


class ImageRewardConfig(Scaled):
    """ImageReward (arXiv 2304.05977): a BLIP that reads image and prompt together."""

    name: Literal["image_reward"] = "image_reward"
    path: str = Field(
        description="ImageReward.pt, here or on the hub (zai-org/ImageReward/ImageReward.pt); med_config.json beside it is read."
    )
    processor: str = Field(
        default="google-bert/bert-base-uncased",
        description="Folder or hub id of the BERT tokenizer.",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Recompute activations of the reward in the backward pass."
    )


class AestheticConfig(Scaled):
    """A head on the image features of a CLIP (LAION) or a SigLIP (Aesthetic Predictor v2.5); ignores the prompt."""

    name: Literal["aesthetic"] = "aesthetic"
    path: str = Field(
        description="The head's file, here or on the hub (owner/name/file.pth); which head it is shows in its tensors."
    )
    backbone: str = Field(
        description="Folder or hub id of the CLIP (LAION's heads) or SigLIP (v2.5) that the head was made for."
    )
    processor: str | None = Field(
        default=None,
        description="Folder or hub id of the image settings, for a backbone that comes without.",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Recompute activations of the reward in the backward pass."
    )


class MpsConfig(Frozen):
    """Multi-dimensional Preference Score (arXiv 2405.14705): a CLIP whose image tokens attend to the prompt under a condition."""

    name: Literal["mps"] = "mps"
    condition: str | None = Field(
        default=None,
        description="ControlPhrases of the dimension that is asked about; none takes those published for the overall score.",
    )


class QwenVLConfig(Frozen):
    """Probability that a vision-language model (Qwen2.5-VL and its kin) answers yes."""

    name: Literal["vlm"] = "vlm"
    question: str = Field(
        default="Does this image show the following? {prompt}",
        description="What is asked; {prompt} is the control phrase and the prompt.",
    )
    yes: str = Field(default="Yes", description="The answer that is rewarded, one token.")
    no: str = Field(default="No", description="The answer against which it is weighed, one token.")
    answer: Literal["probability", "log_odds"] = Field(
        default="probability",
        description="probability: P(yes) of the two; log_odds: the logit of yes minus that of no, whose gradient does not fade.",
    )
    max_pixels: Positive | None = Field(
        default=None,
        description="Larger images are shrunk to this many pixels; none takes the processor's bound.",
    )
    dtype: DtypeName = Field(
        default="bfloat16", description="Of the weights; the published ones are bfloat16."
    )

    @model_validator(mode="after")
    def _asks_about_the_prompt(self) -> QwenVLConfig:
        if "{prompt}" not in self.question:
            raise ValueError(
                "question says nowhere {prompt}, so every prompt would be asked the same: put {prompt} into it"
            )
        return self


class Hpsv3Config(Frozen):
    """HPSv3 (arXiv 2508.03789): a score head on a Qwen2-VL."""

    name: Literal["hpsv3"] = "hpsv3"
    dtype: DtypeName = Field(
        default="bfloat16", description="Of the weights below the head, which is float32."
    )


class PixelStatisticsConfig(Scaled):
    """A plain statistic of the pixels; ignores the prompt."""

    name: Literal["pixels"] = "pixels"
    statistic: Literal["brightness", "saturation", "redness"] = Field(
        description="Which statistic is rewarded."
    )


class PythonConfig(Scaled):
    """Any Python function of images and prompts."""

    name: Literal["python"] = "python"
    path: str = Field(
        description="file.py:name of a function or a class (called with images and prompts, or with encode and score); the file is run."
    )
    args: dict[str, Any] = Field(
        default_factory=dict,
        description="Keyword arguments of the function, or of the class when it is constructed.",
    )
    differentiable: bool = Field(
        default=False,
        description="The function is torch code whose gradient may be used; otherwise a black box.",
    )


class HttpConfig(Scaled):
    """A reward behind an HTTP address, a black box."""

    name: Literal["remote"] = "remote"
    url: str = Field(
        description="Where images and prompts are sent (POST), e.g. http://localhost:8000/score.",
        pattern=r"^https?://",
    )
    batch_size: Positive = Field(default=16, description="Images per request.")
    timeout: float = Field(
        default=60.0, description="Seconds until a request counts as failed.", gt=0
    )
    retries: int = Field(
        default=3,
        description="Further attempts after a failed request, each after twice the wait of the last.",
        ge=0,
    )


def _reward_classes() -> list[type[Scaled]]:
    """The settings of all single rewards: every subclass of `Scaled` in this file that has a `name`."""
    return [
        each
        for each in list(globals().values())
        if isinstance(each, type) and issubclass(each, Scaled) and "name" in each.model_fields
    ]


if TYPE_CHECKING:
    SingleRewardConfig = Any
else:
    SingleRewardConfig = Annotated[Union[tuple(_reward_classes())], Discriminator("name")]  # noqa: UP007


class MemberConfig(Strict):
    """One reward of a mixture."""

    label: str = Field(
        description="What its curves are called: letters, digits, _ and -.",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$",
    )
    reward: SingleRewardConfig
    weight: float = Field(default=1.0, description="Its share of the sum; below 0 it is a cost.")
    form: Literal["method", "absolute"] = Field(
        default="method",
        description="method: asked in the form of the method (relative, anchored), with its words; absolute: its score under its own positive words, "
        "else the bare prompt, as rewards that ignore prompts must be.",
    )
    control_phrases: ControlPhrases | None = Field(
        default=None,
        description="Control phrases or learned tokens of this member in place of the method's.",
    )
    anchor: AnchorConfig | None = Field(
        default=None,
        description="Anchor of this member, whose tolerance is in the units of its score; none takes the method's.",
    )

    @model_validator(mode="after")
    def _counts(self) -> MemberConfig:
        if self.weight == 0:
            raise ValueError(
                f"weight 0 leaves {self.label} out: remove the member, or hold it out under evaluate.rewards"
            )
        return self


class MixtureConfig(Strict):
    """Several rewards, weighed, brought to one scale, logged apart."""

    name: Literal["mix"] = "mix"
    members: list[MemberConfig] = Field(description="Two rewards or more.", min_length=2)
    normalise: Literal["running", "none"] = Field(
        default="running",
        description="running: each member's reward is divided by its running spread over images; none: raw scores are added.",
    )
    gradient_normalization: bool = Field(
        default=False,
        description="Each member's gradient in the image is brought to the same running norm before the weights act.",
    )
    std_penalty: float = Field(
        default=0.0,
        description="Weight of the spread between normalised members, which is subtracted: pay only what they agree on.",
        ge=0,
    )

    @model_validator(mode="after")
    def _labels_differ(self) -> MixtureConfig:
        labels = [member.label for member in self.members]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"two members are called {twice[0]}: give each its own label")
        if self.std_penalty > 0 and self.normalise == "none":
            raise ValueError(
                "std_penalty compares members, which needs one scale: set normalise: running"
            )
        return self


if TYPE_CHECKING:
    RewardConfig = Any
else:
    RewardConfig = Annotated[Union[(*_reward_classes(), MixtureConfig)], Discriminator("name")]  # noqa: UP007
