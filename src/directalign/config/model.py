"""The text-to-image model of a run: checkpoint, trained weights, dtypes and quantization."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .base import DtypeName, Free, PathText, Positive, Strict


class LoRAConfig(Strict):
    """Low-rank adapters (peft) on the denoiser."""

    rank: Positive = 16
    """Rank of the update."""
    alpha: Positive = 16
    """Scale numerator: the update is multiplied by alpha / rank."""
    targets: Annotated[list[str], Field(min_length=1)] | None = None
    """Names of the layers to adapt; none uses the list of the architecture."""


class ModelConfig(Strict):
    """The text-to-image model, and which of its weights are trained."""

    architecture: PathText
    """flux, flux2_klein, sd3, sd, sdxl, qwen_image or z_image (the names in
    directalign.models.MODELS), or a class of your own: my_model.py:MyModel."""
    path: PathText
    """A diffusers folder, a hub id (owner/name), a single .safetensors file, or an embedded
    pipeline: world:flux, world:sd, world:sd_v."""
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
        if self.quantization is not None and self.tune == "full":
            raise ValueError(
                f"quantization {self.quantization} freezes the weights that tune: full trains: "
                "set tune: lora, or remove quantization"
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
