"""Qwen-Image: rectified flow on packed tokens beside the prompt's tokens from Qwen2.5-VL.

A prompt is read within an instruction, whose tokens are then dropped; prompts keep their own
lengths, with a mask. Guidance takes two passes and gives each token of the guided prediction the
norm that it has under the prompt; the unconditional prompt is a single space, as in the released
model's use (cfg_scale 4). Left out: embedded guidance, for which diffusers' network has no layer;
layered models.

Qwen-Image-Edit and Edit Plus (2509, 2511) are the same network, which edits an image: Qwen2.5-VL
reads it with the prompt, and its latents follow those that are sampled. As in the pipelines it is
first resized by Pillow to some 1024x1024 pixels (for Plus: to 384x384 where Qwen2.5-VL reads it),
whatever size is made. Under transformers 5 diffusers gives the image's tokens plain positions, not
those by row and column (diffusers issue 14194); so does this. Left out: several sources.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as edit_plus
from PIL import Image
from torch import Tensor

from .. import config
from ..io.image_settings import VlmPixels
from ..io.tensors import to_pixels
from ..types import Conditioning, DirectAlignError, Images, Latents, PerSample
from .common import JOINT_ATTENTION, DiffusersModel, pack, parts_of, unpack
from .text_encoder import joined
from .vae import VideoLatents

IMAGE = "<|image_pad|>"
"""Placeholder of a token of the source image."""
MAX_SEQUENCE_LENGTH = 1024
"""Tokens of a prompt that edits; the pipelines have no limit."""


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
    caches_blocks = True
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
        library: Any = getattr(diffusers, self.pipeline)(**parts)
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
        images = [x_t, *(cond.tensors[name] for name in ("source",) if name in cond.tensors)]
        tokens = self._network(
            hidden_states=torch.cat([pack(each) for each in images], 1).to(self.dtype),
            timestep=sigma.float(),
            encoder_hidden_states=cond.tensors["sequence"],
            encoder_hidden_states_mask=None if mask.all() else mask,  # attention is faster without
            img_shapes=[[(1, e.shape[2] // 2, e.shape[3] // 2) for e in images]] * b,
        )
        return unpack(tokens[:, : h * w // 4], h, w)

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


EDIT_PARTS = {**QwenImage.parts, "processor": None}


class QwenImageEdit(QwenImage):
    """A Qwen-Image-Edit checkpoint; each prompt is encoded with the image that it edits."""

    title = "Qwen-Image-Edit"
    pipeline = "QwenImageEditPipeline"
    parts = EDIT_PARTS
    edits_images = reads_sources = True
    components = "Qwen/Qwen-Image-Edit"
    published = "qwen_image_edit"
    read_area, kept_area = 1024 * 1024, 1024 * 1024
    """Pixels of a source as the text encoder, and as the VAE gets it."""
    introduction = ""
    """What stands before a prompt."""

    def _setup(self, folder: FilePath, parts: Mapping[str, Any]) -> None:
        super()._setup(folder, parts)
        reader, key = parts["processor"], "model.path"
        self.tokenizers = [getattr(reader, "tokenizer", reader)]  # of a pipeline in memory
        images = getattr(reader, "image_processor", None)
        self.pixels = (
            VlmPixels.read(folder / "processor", key)
            if images is None
            else VlmPixels.of_settings(images.to_dict(), folder, "pipe.processor")
        )

    def encode_prompt(self, prompts: Sequence[str], sources: Images | None = None) -> Conditioning:
        """`_embed` of the prompts and of the unconditional one, each with its source, whose latents
        (b, c, h, w) are the tensor `source`. Raises DirectAlignError for prompts without sources.
        """
        if sources is None:
            raise DirectAlignError(
                f"{self.pipeline} reads each prompt with its source image: train on data.edits, or "
                "sample with --source"
            )
        source = {"source": self.encode_image(self._resized(sources, self.kept_area))}
        images = self._resized(sources, self.read_area)
        with torch.no_grad(), self.prompts.on_device():
            tensors, unconditional = (
                self._embed(each, images) | source
                for each in (list(prompts), [self.unconditional] * len(prompts))
            )
        return Conditioning(tuple(prompts), tensors, unconditional)

    def _empty_prompt(self) -> dict[str, Tensor]:
        return {}  # it depends on the source

    def _embed(self, prompts: list[str], images: Images | None = None) -> dict[str, Tensor]:
        """`sequence` (b, tokens, d), of image and prompt, and its boolean `mask` (b, tokens)."""
        assert images is not None, "a prompt is read with its image"
        rows, columns = self.pixels.size(*images.shape[2:])
        shown = resized_by_pillow(images, rows, columns, Image.Resampling.BICUBIC).to(self.device)
        text_encoder: Any = self.prompts.modules["text_encoder"]
        grid = torch.tensor([[1, *self.pixels.grid(rows, columns)]], device=self.device)
        found = list[Tensor]()
        for prompt, image in zip(prompts, shown, strict=True):
            count = int(grid.prod()) // self.pixels.merge**2
            ids = self.prompt_ids(prompt, count, text_encoder.config.image_token_id)
            states = text_encoder(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=self.pixels(image[None]),
                image_grid_thw=grid,
                output_hidden_states=True,
            ).hidden_states[-1]
            found.append(states[:, self.dropped :])
        return joined(found)

    def prompt_ids(self, prompt: str, count: int = 1, image_token: int = 0) -> Tensor:
        """Token ids (1, n) of a prompt in its template, with `count` placeholders of its image."""
        template = self.tokenizers[0](self.template.format(self.introduction))["input_ids"]
        text = self.template.format(self.introduction + prompt)
        longest = 1 if prompt == self.unconditional else MAX_SEQUENCE_LENGTH  # it is one token
        length = longest + len(template)
        ids = self._tokens([text], length, padding=False).input_ids
        (places,) = (ids[0] == self.tokenizers[0].convert_tokens_to_ids(IMAGE)).nonzero().unbind(1)
        if len(places) != 1:
            raise DirectAlignError(
                f"the prompt {prompt!r} holds {IMAGE}, the placeholder of the image: remove it"
            )
        before, after = ids[:, : places[0]], ids[:, places[0] + 1 :]
        return torch.cat([before, ids.new_full((1, count), image_token), after], 1)

    def _resized(self, images: Images, area: int) -> Tensor:
        height, width = images.shape[2:]
        columns, rows = edit_plus.calculate_dimensions(area, width / height)
        return resized_by_pillow(images, rows, columns, Image.Resampling.LANCZOS)


class QwenImageEditPlus(QwenImageEdit):
    """A Qwen-Image-Edit-2509 or -2511 checkpoint, with one source for each prompt."""

    title = "Qwen-Image-Edit Plus"
    pipeline = "QwenImageEditPlusPipeline"
    components = "Qwen/Qwen-Image-Edit-2511"
    published = "qwen_image_edit_plus"
    read_area = 384 * 384
    introduction = f"Picture 1: <|vision_start|>{IMAGE}<|vision_end|>"


@torch.library.custom_op("directalign::resized_by_pillow", mutates_args=())
def resized_by_pillow(images: Tensor, height: int, width: int, resampling: int) -> Tensor:
    """Images (b, 3, h, w) in [0, 1] rounded to 8 bits and resized as files are: float32.

    An operation of its own, so that tensors without data pass it.
    """
    frames = (Image.fromarray(to_pixels(image)) for image in images)
    resized = [np.array(each.resize((width, height), resampling)) for each in frames]
    return (torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 255).to(images.device)


@resized_by_pillow.register_fake
def _(images: Tensor, height: int, width: int, resampling: int) -> Tensor:
    return images.new_empty((len(images), 3, height, width), dtype=torch.float32)
