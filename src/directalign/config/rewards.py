"""The settings of each reward, one class each, with `name` in a recipe as its tag.

A new reward's class here joins the schema by itself; its code is one file and one line in
`rewards.REWARDS`. Score definitions and published files: the heads of rewards/<module>.py. A `path`
that ends like a weight file is that file, local or on the hub (owner/name/file.pt); any other is a
folder, a hub id, or embedded (world:...).
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import Discriminator, Field, model_validator

from .base import (
    BatchSize,
    DtypeName,
    Fraction,
    Free,
    NonNegative,
    NonNegativeFloat,
    PathText,
    Positive,
    PositiveFloat,
    Strict,
    named_sections,
)
from .methods import AnchorConfig, ControlPhrases


class Scaled(Strict):
    """Settings of every single reward."""

    scale: PositiveFloat = 1.0
    """Factor on every score (the official PickScore setting is 5: 100·cos/20)."""


class Frozen(Scaled):
    """Settings of every reward with a network of its own."""

    path: PathText
    """A transformers folder, a hub id, a published weight file, local or on the hub
    (owner/name/file.pt), or world:..., world2:... (the toy worlds)"""
    processor: PathText | None = None
    """Folder or hub id of tokenizer and image settings, for weights without them."""
    gradient_checkpointing: Annotated[bool, Free] = False
    """Recompute activations of the reward in the backward pass."""


class Projected(Frozen):
    """Settings of a reward with an embedding space of images."""

    project_out: PathText | None = None
    """A .safetensors file of directions to remove from the image features."""


class ClipConfig(Projected):
    """Cosine of image and prompt in a CLIP: CLIP itself, PickScore, HPSv2.1, world:reward."""

    name: Literal["clip"] = "clip"
    activation: Literal["gelu", "quick_gelu"] | None = None
    """For an open_clip file without its open_clip_config.json: quick_gelu for OpenAI, DFN,
    MetaCLIP; gelu for LAION."""
    clean_text: bool | None = None
    """Clean prompts as OpenAI and open_clip do (mojibake, HTML entities, curly quotes, full-width
    letters); none does so unless `path` names PickScore, whose makers do not."""


class AltClipConfig(Projected):
    """Cosine of image and prompt in an AltCLIP, a CLIP that reads many languages."""

    name: Literal["altclip"] = "altclip"


class SiglipConfig(Projected):
    """Cosine of image and prompt in a SigLIP or SigLIP 2."""

    name: Literal["siglip"] = "siglip"


class LatentClipConfig(Frozen):
    """Cosine of latents and prompt in a CLIP whose image tower reads a model's clean latents, so
    that training decodes no image: world:reward_latent."""

    name: Literal["latent_clip"] = "latent_clip"


class ImageRewardConfig(Frozen):
    """ImageReward (arXiv 2304.05977): a BLIP with cross-attention between image and prompt."""

    name: Literal["image_reward"] = "image_reward"
    path: PathText
    """ImageReward.pt, local or on the hub (zai-org/ImageReward/ImageReward.pt), with
    med_config.json in the same folder."""
    processor: PathText = "google-bert/bert-base-uncased"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Folder or hub id of the BERT tokenizer."""


class AestheticConfig(Frozen):
    """A head on the image features of a CLIP (LAION) or a SigLIP (Aesthetic Predictor v2.5);
    ignores the prompt."""

    name: Literal["aesthetic"] = "aesthetic"
    path: PathText
    """File of the head, local or on the hub (owner/name/file.pth); its tensors identify the
    head."""
    backbone: str
    """Folder or hub id of the CLIP (LAION's heads) or SigLIP (v2.5) that the head was trained
    on."""
    processor: PathText | None = None
    """Folder or hub id of the image settings, for a backbone without them."""


class MpsConfig(Frozen):
    """Multi-dimensional Preference Score (arXiv 2405.14705): a CLIP with cross-attention from
    prompt to image tokens, under a condition."""

    name: Literal["mps"] = "mps"
    condition: str | None = None
    """Words of the dimension to score; none uses those published for the overall score."""


class QwenVLConfig(Frozen):
    """Probability that a vision-language model (Qwen2.5-VL and related) answers yes."""

    name: Literal["vlm"] = "vlm"
    question: str = "Does this image show the following? {prompt}"
    """The question; {prompt} is replaced by the control phrase and the prompt."""
    yes: str = "Yes"
    """The rewarded answer, one token."""
    no: str = "No"
    """The opposite answer, one token."""
    answer: Literal["probability", "log_odds"] = "probability"
    """probability: P(yes) of the two; log_odds: logit of yes minus logit of no, whose gradient does
    not saturate."""
    max_pixels: Positive | None = None
    """Larger images are resized to this many pixels; none uses the processor's limit."""
    dtype: DtypeName = "bfloat16"
    """Dtype of the weights; the published ones are bfloat16."""

    @model_validator(mode="after")
    def _check_question(self) -> QwenVLConfig:
        if "{prompt}" not in self.question:
            raise ValueError(
                "question has no {prompt}, so it is the same for every prompt: put {prompt} into it"
            )
        return self


class Hpsv3Config(Frozen):
    """HPSv3 (arXiv 2508.03789), a score head on a Qwen2-VL, or HPSv3++ (arXiv 2606.14657), a
    conditioned one on a Qwen3-VL."""

    name: Literal["hpsv3"] = "hpsv3"
    dtype: DtypeName = "bfloat16"
    """Dtype of the weights below the head, which is float32."""
    iteration: Fraction = 0.0
    """HPSv3++ only, a condition that it was trained with: steps of reinforcement learning behind
    the model that made the images, in thousands and at most 1."""


class PixelStatisticsConfig(Scaled):
    """A statistic of the pixels; ignores the prompt."""

    name: Literal["pixels"] = "pixels"
    statistic: Literal["brightness", "saturation", "redness"]
    """The rewarded statistic."""


class PreservationConfig(Scaled):
    """Minus the mean squared difference from the source image outside the mask of an edit; for
    data.edits; ignores the prompt."""

    name: Literal["preservation"] = "preservation"


class OcrConfig(Scaled):
    """Share of the characters, between double quotes in the prompt, that OCR reads in the image; a
    black box; needs directalign[ocr]."""

    name: Literal["ocr"] = "ocr"


class PythonConfig(Scaled):
    """Any Python function of images and prompts."""

    name: Literal["python"] = "python"
    path: PathText
    """file.py:name of a function or a class (called with images and prompts, or with encode and
    score); the file is executed."""
    args: dict[str, Any] = {}
    """Keyword arguments of the function, or of the class when it is constructed."""
    differentiable: bool = False
    """The function is torch code with a usable gradient; otherwise it is a black box."""


SECRET = re.compile(r"(?i)(^|[&_-])(api_?-?key|key|token|authorization|secret|password|sig)(=|$)")
"""Names of fields that hold credentials."""


class Served(Scaled):
    """Settings of every reward behind an HTTP address, a black box."""

    url: Annotated[str, Field(pattern=r"^https?://"), Free]
    """Address for images and prompts (POST), e.g. http://localhost:8000/score; of vlm_api
    http://localhost:8000/v1/chat/completions."""
    timeout: Annotated[PositiveFloat, Free] = 60.0
    """Seconds until a request counts as failed."""
    retries: Annotated[NonNegative, Free] = 3
    """Further attempts after a failed request, each after twice the previous wait."""

    @model_validator(mode="after")
    def _check_address(self) -> Served:
        if SECRET.search(self.url.partition("?")[2]):
            raise ValueError(
                "url has what looks like a credential behind its ?, which would be recorded: "
                "remove it"
            )
        return self


class HttpConfig(Served):
    """A reward served over HTTP, a black box."""

    name: Literal["remote"] = "remote"
    batch_size: Annotated[BatchSize, Free] = 16
    """Images per request."""


class VlmApiConfig(Served):
    """A number in the answer of a vision-language model behind an OpenAI-compatible address (vLLM,
    SGLang, OpenAI), a black box."""

    name: Literal["vlm_api"] = "vlm_api"
    model: str
    """The server's name of the model."""
    template: str
    """The question about the image; {prompt} is replaced by the control phrase and the prompt."""
    pattern: str = r"^\s*(-?\d+(?:\.\d+)?)\s*$"
    """Regular expression whose first match in the answer has the number as its group; of several
    groups the mean counts. By default the answer must be a number and nothing else."""
    answer: Literal["number", "expected"] = "number"
    """number: as it is written; expected: its mean over the whole numbers among the most probable
    tokens in its place, which needs logprobs of the server and a scale that ends at 9 or below:
    of 10 the first token may be 1."""
    options: dict[str, Any] = {"temperature": 0}
    """Further fields of the request, e.g. max_tokens."""
    api_key_variable: Annotated[str | None, Free] = None
    """Name of the environment variable with the key, e.g. OPENAI_API_KEY; it is sent as a bearer
    token."""
    concurrency: Annotated[Positive, Free] = 8
    """Requests at a time, one per image and prompt."""

    @model_validator(mode="after")
    def _check_reading(self) -> VlmApiConfig:
        if "{prompt}" not in self.template:
            raise ValueError(
                "template has no {prompt}, so it is the same for every prompt: put {prompt} into it"
            )
        try:
            groups = re.compile(self.pattern).groups
        except re.error as error:
            raise ValueError(f"pattern is no regular expression ({error}): correct it") from error
        if groups == 0 or (groups > 1 and self.answer == "expected"):
            wanted = "one, (...)" if self.answer == "expected" else "one or more, (...)"
            raise ValueError(f"pattern has {groups} groups around a number: write {wanted}")
        if not re.fullmatch("[A-Z_][A-Z0-9_]*", self.api_key_variable or "_"):
            raise ValueError(  # without the value, which may be a key
                "api_key_variable is no name of an environment variable: write OPENAI_API_KEY or "
                "the like, and the key into that variable"
            )
        if taken := {"model", "messages", "stream", "n", "logprobs", "top_logprobs"} & {
            *self.options
        }:
            raise ValueError(f"options: {min(taken)} is set by this reward: remove it")
        if any(SECRET.search(name) for name in self.options):  # the name may be a key, too
            raise ValueError(
                "options has a field that looks like a credential, which would be recorded: name "
                "its environment variable in api_key_variable"
            )
        try:
            json.dumps(self.options, allow_nan=False)
        except (ValueError, TypeError) as error:
            raise ValueError(f"options cannot be sent as JSON ({error}): correct them") from error
        return self


if TYPE_CHECKING:
    SingleRewardConfig = Any
else:
    _single = named_sections(Scaled, [*globals().values()])
    SingleRewardConfig = Annotated[Union[tuple(_single)], Discriminator("name")]  # noqa: UP007


class MemberConfig(Strict):
    """One reward of a mixture."""

    label: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    """Name of its curves: letters, digits, _ and -."""
    reward: SingleRewardConfig
    weight: float = 1.0
    """Weight in the sum; negative values penalize."""
    form: Literal["method", "absolute"] = "method"
    """method: the form of the method (relative, anchored), with its phrases; absolute: the score
    under its own positive phrases, or of the bare prompt, as required for rewards that ignore
    prompts."""
    control_phrases: ControlPhrases | None = None
    """Control phrases or soft prompts of this member instead of the method's."""
    anchor: AnchorConfig | None = None
    """Anchor of this member, with a tolerance in the units of its score; none uses the method's."""

    @model_validator(mode="after")
    def _check_weight(self) -> MemberConfig:
        if self.weight == 0:
            raise ValueError(
                f"weight 0 disables {self.label}: remove the member, or move it to evaluate.rewards"
            )
        return self


class MixtureConfig(Strict):
    """Weighted sum of several rewards, normalized and logged separately."""

    name: Literal["mix"] = "mix"
    members: Annotated[list[MemberConfig], Field(min_length=2)]
    """Two rewards or more."""
    normalise: Literal["running", "none"] = "running"
    """running: each member's reward is divided by its running standard deviation over images; none:
    raw scores are added."""
    gradient_normalization: bool = False
    """Scale each member's gradient at the image to the same running norm before the weights
    apply."""
    std_penalty: NonNegativeFloat = 0.0
    """Weight of the standard deviation between normalized members, which is subtracted; favours
    images on which they agree."""

    @model_validator(mode="after")
    def _check_members(self) -> MixtureConfig:
        labels = [member.label for member in self.members]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"two members have the label {twice[0]}: give each its own")
        if self.std_penalty > 0 and self.normalise == "none":
            raise ValueError("std_penalty needs members of one scale: set normalise: running")
        return self


if TYPE_CHECKING:
    RewardConfig = Any
else:
    RewardConfig = Annotated[Union[(*_single, MixtureConfig)], Discriminator("name")]
