"""Qwen-Image: rectified flow on packed tokens beside the prompt's tokens from Qwen2.5-VL.

A prompt is read within an instruction, whose tokens are then dropped; prompts keep their own
lengths, with a mask. Guidance takes two passes and gives each token of the guided prediction the
norm that it has under the prompt; the unconditional prompt is a single space, as in the released
model's use (cfg_scale 4). Left out: embedded guidance, for which diffusers' network has no layer;
editing and layered models.
"""

from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel
from torch import Tensor

from .. import config
from ..types import Conditioning, DirectAlignError, Latents, PerSample
from .common import JOINT_ATTENTION, DiffusersModel, pack, parts_of, unpack
from .vae import VideoLatents


class QwenImage(VideoLatents, DiffusersModel):
    """A Qwen-Image checkpoint; a prompt's prediction does not depend on the others in its batch."""

    title = "Qwen-Image"
    masks_attention = True
    pipeline = "QwenImagePipeline"
    parts = parts_of(QwenImageTransformer2DModel, vae=AutoencoderKLQwenImage)
    unconditional = " "
    lora_layout = "qwen_image"
    components = "Qwen/Qwen-Image"
    max_sequence_length = 512  # that the network sees
    usual_cfg = 4.0
    published = "qwen_image"
    lora_targets = (
        *JOINT_ATTENTION,
        *("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2"),
    )

    @classmethod
    def check(cls, folder: FilePath, parts: Mapping[str, Any]) -> None:
        super().check(folder, parts)
        for name in ("guidance_embeds", "use_additional_t_cond"):
            if parts["transformer"].config.get(name):
                raise DirectAlignError(
                    f"{folder / 'transformer'}: {name} is on, an input that plain text-to-image "
                    "does not have: give a plain Qwen-Image in model.path"
                )

    def _setup(self, folder: FilePath, parts: Mapping[str, Any]) -> None:
        self.tokenizers, self.scheduler = [parts["tokenizer"]], parts["scheduler"]
        self.vae = parts["vae"].to(self.device)
        library: Any = QwenImagePipeline(**parts)
        self.template = library.prompt_template_encode
        self.dropped = library.prompt_template_encode_start_idx
        self.downscaling = library.vae_scale_factor
        self.default_size = (library.default_sample_size * self.downscaling,) * 2

    def _embed(self, prompts: list[str]) -> dict[str, Tensor]:
        """`sequence` (b, tokens, d) and its boolean `mask` (b, tokens)."""
        text_encoder: Any = self.prompts.modules["text_encoder"]
        tokens = self._tokens(
            [self.template.format(prompt) for prompt in prompts],
            self.dropped + self.max_sequence_length,
            padding=True,
            padding_side="right",
        )
        states = text_encoder(
            tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True
        ).hidden_states[-1]
        mask = tokens.attention_mask[:, self.dropped :].bool()
        return {"sequence": states[:, self.dropped :] * mask[..., None], "mask": mask}

    def _predict(self, x_t: Latents, sigma: PerSample, cond: Conditioning) -> Tensor:
        b, _, h, w = x_t.shape
        mask = cond.tensors["mask"]
        tokens = self._network(
            hidden_states=pack(x_t).to(self.dtype),
            timestep=sigma.float(),
            encoder_hidden_states=cond.tensors["sequence"],
            encoder_hidden_states_mask=None if mask.all() else mask,  # attention is faster without
            img_shapes=[[(1, h // 2, w // 2)]] * b,
        )
        return unpack(tokens, h, w)

    def _guide(self, cond: Latents, uncond: Latents, scale: float) -> Latents:
        """Each 2x2 block of latents is rescaled to the norm that it has under the prompt."""
        tokens, own = pack(super()._guide(cond, uncond, scale)), pack(cond)
        norms = own.norm(dim=-1, keepdim=True) / tokens.norm(dim=-1, keepdim=True)
        return unpack(tokens * norms, *cond.shape[2:])

    def call_arguments(self, rollout: config.RolloutConfig) -> dict[str, Any]:
        """Arguments for one prompt."""
        two_passes = rollout.cfg_scale != 1.0
        return {
            **({"negative_prompt": self.unconditional} if two_passes else {}),
            "true_cfg_scale": rollout.cfg_scale,
            "max_sequence_length": self.max_sequence_length,
        }
