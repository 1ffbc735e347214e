"""The text-to-image model of a run: where it comes from, what of it is trained, and in how many bits it is held."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from .base import DtypeName, Positive, Strict


class LoRAConfig(Strict):
    """Low-rank adapters (peft) on the denoiser."""

    rank: Positive = Field(default=16, description="Rank of the update.")
    alpha: Positive = Field(
        default=16, description="Scale numerator: the update is multiplied by alpha / rank."
    )
    targets: list[str] | None = Field(
        default=None, description="Layer names to adapt; none means the family's own list."
    )


class ModelConfig(Strict):
    """The text-to-image model and what of it is trained."""

    architecture: str = Field(
        description="flux, flux2_klein, sd3, sd, sdxl, qwen_image or z_image (the names in "
        "directalign.models.MODELS), or a class of your own: my_model.py:MyModel."
    )
    path: str = Field(
        description="A diffusers folder, a hub id (owner/name), a single .safetensors file, or an embedded pipeline: world:flux, world:sd, world:sd_v."
    )
    components: str | None = Field(
        default=None,
        description="For a single file: diffusers folder or hub id of its configs, tokenizers and lacking parts.",
    )
    revision: str | None = Field(
        default=None, description="Branch, tag or commit on the hub; none takes the main branch."
    )
    variant: str | None = Field(
        default=None,
        description="Variant of the weight files, fp16 for instance; none takes the plain ones.",
    )
    tune: Literal["lora", "full"] = Field(
        default="lora", description="Train adapters, or all weights of the denoiser."
    )
    lora: LoRAConfig = Field(
        default=LoRAConfig(), description="Adapter settings; read when tune is lora."
    )
    dtype: DtypeName = Field(
        default="float32", description="Dtype of the frozen weights and of the forward pass."
    )
    trained_dtype: DtypeName = Field(
        default="float32",
        description="Dtype of the trained weights when tune is full; bfloat16 needs train.optimizer adamw8bit, which rounds at random.",
    )
    quantization: Literal["8bit", "4bit"] | None = Field(
        default=None,
        description="Hold the denoiser's frozen weights in 8 or 4 bits; for tune lora.",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="Recompute activations of the denoiser and the VAE decoder in the backward pass.",
    )
    compile: bool = Field(
        default=False,
        description="Compile the denoiser's repeated blocks (torch.compile): the first updates are slow, the others faster.",
    )
    attention: str | None = Field(
        default=None,
        description="Attention backend of diffusers, native or flash for instance; none leaves the library's choice.",
    )
    text_encoders: Literal["keep", "offload", "free"] = Field(
        default="keep",
        description="keep them on the device; offload them to the CPU between uses; free them, once all prompts of the run are encoded into a cache on disk.",
    )

    @model_validator(mode="after")
    def _weights_fit_together(self) -> ModelConfig:
        if self.quantization is not None and self.tune == "full":
            raise ValueError(
                f"quantization {self.quantization} freezes the weights that tune: full trains: set tune: lora, or leave quantization out"
            )
        if self.trained_dtype == "bfloat16" and (self.tune, self.dtype) != ("full", "bfloat16"):
            raise ValueError(
                "trained_dtype: bfloat16 is for tune: full with dtype: bfloat16: adapters are small and stay float32"
            )
        if self.components is not None and not self.path.endswith(".safetensors"):
            raise ValueError(
                "components complete a single .safetensors file in path; a folder or hub id is complete: leave components out"
            )
        return self
