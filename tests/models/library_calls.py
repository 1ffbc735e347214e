"""How diffusers' own pipelines encode prompts, and how their raw networks and VAEs are called."""

import json
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import Flux2KleinPipeline, FluxPipeline, QwenImagePipeline
from diffusers.models.transformers.transformer_hidream_image import MOEFeedForwardSwiGLU
from torch import Tensor
from transformers import PreTrainedTokenizerFast, ProcessorMixin

from directalign.evaluation.generate import save_png
from directalign.types import Sources
from models.srpo_by_hand import PROMPTS
from tiny import MAX_SEQUENCE_LENGTH, SIZE, SIZES

Tensors = Mapping[str, Any]
GUIDANCE = 2.5
"""Embedded guidance of the cases that take it."""


class AutoencoderCalls:
    """The library's VAE between images in [0, 1] and latents in the denoiser's scale."""

    def __init__(self, scale: float = 0.4, shift: float = 0.0) -> None:
        self.scale, self.shift = scale, shift

    def encode(self, pipeline: Any, images: Tensor) -> Tensor:
        mode = pipeline.vae.encode(2 * images - 1).latent_dist.mode()
        return (mode - self.shift) * self.scale

    def decode(self, pipeline: Any, x0: Tensor) -> Tensor:
        return pipeline.vae.decode(x0 / self.scale + self.shift).sample / 2 + 0.5


class SanaCalls(AutoencoderCalls):
    def encode(self, pipeline: Any, images: Tensor) -> Tensor:
        return pipeline.vae.encode(2 * images - 1).latent * self.scale


class QwenCalls:
    mean, std = (
        torch.tensor(SIZES["qwen_vae"][f"latents_{each}"])[:, None, None]
        for each in ("mean", "std")
    )

    def encode(self, pipeline: Any, images: Tensor) -> Tensor:
        mode = pipeline.vae.encode(2 * images[:, :, None] - 1).latent_dist.mode()
        return (mode[:, :, 0] - self.mean) / self.std

    def decode(self, pipeline: Any, x0: Tensor) -> Tensor:
        latents = (x0 * self.std + self.mean)[:, :, None]
        return pipeline.vae.decode(latents).sample[:, :, 0] / 2 + 0.5


def opaque(images: Tensor) -> Tensor:
    return torch.cat([images, torch.ones_like(images[:, :1])], dim=1)


def over_white(images: Tensor) -> Tensor:
    opacity = images[:, 3:].clamp(0, 1)
    return images[:, :3] * opacity + 1 - opacity


class Qwen21Calls(QwenCalls):
    def encode(self, pipeline: Any, images: Tensor) -> Tensor:
        return super().encode(pipeline, opaque(images))

    def decode(self, pipeline: Any, x0: Tensor) -> Tensor:
        return over_white(super().decode(pipeline, x0))


class TextProcessor(ProcessorMixin):
    """The library's Qwen3VLProcessor of texts, without its images, which need torchvision."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)

    def __call__(self, text: list[str], **given: Any) -> Any:
        return self.tokenizer(text, **given)

    def apply_chat_template(self, messages: Any, **_: Any) -> list[list[int]]:
        (part,) = messages[0]["content"]
        text = f"<|im_start|>system\n{part['text']}<|im_end|>\n"
        return [self.tokenizer(text)["input_ids"]]


class KleinCalls:
    def scale(self, pipeline: Any) -> tuple[Tensor, Tensor]:
        norm = pipeline.vae.bn
        return norm.running_mean[:, None, None], (norm.running_var + 1e-4).sqrt()[:, None, None]

    def encode(self, pipeline: Any, images: Tensor) -> Tensor:
        return pipeline._encode_vae_image(2 * images - 1, generator=None)

    def decode(self, pipeline: Any, x0: Tensor) -> Tensor:
        mean, std = self.scale(pipeline)
        latents = Flux2KleinPipeline._unpatchify_latents(x0 * std + mean)
        return pipeline.vae.decode(latents).sample / 2 + 0.5

    def rescaled(self, pipeline: Any, latents: Tensor) -> Tensor:
        mean, std = self.scale(pipeline)
        return (Flux2KleinPipeline._patchify_latents(latents) - mean) / std


class ErnieCalls(KleinCalls):
    """The pipeline fixes the epsilon in its call, and gives latents as the network has them."""

    def scale(self, pipeline: Any) -> tuple[Tensor, Tensor]:
        norm = pipeline.vae.bn
        return norm.running_mean[:, None, None], (norm.running_var + 1e-5).sqrt()[:, None, None]

    def encode(self, pipeline: Any, images: Tensor) -> Tensor:
        return self.rescaled(pipeline, pipeline.vae.encode(2 * images - 1).latent_dist.mode())


def linear(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    return (1 - scale) * uncond + scale * cond


def flux_prompts(pipeline: Any, prompts: list[str]) -> tuple[Tensors, Tensors]:
    def encode(texts: list[str]) -> Tensors:
        given = {"max_sequence_length": MAX_SEQUENCE_LENGTH}
        sequence, pooled, _ = pipeline.encode_prompt(texts, None, **given)
        return {"sequence": sequence, "pooled": pooled}

    return encode(prompts), encode([""] * len(prompts))


def flux_network(pipeline: Any, x_t: Tensor, sigma: Tensor, tensors: Tensors) -> Tensor:
    b, _, h, w = x_t.shape
    tokens = pipeline.transformer(
        hidden_states=FluxPipeline._pack_latents(x_t, *x_t.shape),
        timestep=sigma.float(),
        guidance=torch.full((b,), GUIDANCE),
        pooled_projections=tensors["pooled"],
        encoder_hidden_states=tensors["sequence"],
        txt_ids=torch.zeros(tensors["sequence"].shape[1], 3),
        img_ids=FluxPipeline._prepare_latent_image_ids(b, h // 2, w // 2, "cpu", torch.float32),
    ).sample
    return FluxPipeline._unpack_latents(tokens, 4 * h, 4 * w, 4)


def sources_of(height: int, width: int, count: int = 2) -> Sources:
    """Images to edit, the left half of each masked."""
    images = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(9))
    masks = torch.zeros(count, 1, height, width)
    masks[..., : width // 2] = 1
    return Sources(images, masks)


def write_edits(folder: Path) -> Path:
    """edits.jsonl of `PROMPTS` and the first sources, one of them with its mask."""
    sources, rows = sources_of(SIZE, SIZE), []
    for place, prompt in enumerate(PROMPTS):
        save_png(sources.images[place], folder / f"{place}.png")
        rows.append({"prompt": prompt, "source": f"{place}.png"})
    save_png(sources.masks[0].expand(3, -1, -1), folder / "mask.png")
    rows[0]["mask"] = "mask.png"
    (folder / "edits.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "edits.jsonl"


def kontext_network(
    pipeline: Any, x_t: Tensor, sigma: Tensor, tensors: Tensors, sources: Sources
) -> Tensor:
    b, _, h, w = x_t.shape
    kind, own = type(pipeline), (b, h // 2, w // 2, "cpu", torch.float32)
    image = 2 * sources.images - 1
    source = pipeline._encode_vae_image(image=image, generator=None)
    ids = [kind._prepare_latent_image_ids(*own) for _ in range(2)]
    ids[1][..., 0] = 1
    tokens = pipeline.transformer(
        hidden_states=torch.cat([kind._pack_latents(e, *e.shape) for e in (x_t, source)], 1),
        timestep=sigma.float(),
        guidance=torch.full((b,), GUIDANCE),
        pooled_projections=tensors["pooled"],
        encoder_hidden_states=tensors["sequence"],
        txt_ids=torch.zeros(tensors["sequence"].shape[1], 3),
        img_ids=torch.cat(ids),
    ).sample
    return kind._unpack_latents(tokens[:, : h * w // 4], 4 * h, 4 * w, 4)


def klein_prompts(pipeline: Any, prompts: list[str]) -> tuple[Tensors, Tensors]:
    return tuple(
        {"sequence": pipeline.encode_prompt(each)[0]} for each in (prompts, [""] * len(prompts))
    )


def klein_network(
    pipeline: Any, x_t: Tensor, sigma: Tensor, tensors: Tensors, guidance: Tensor | None = None
) -> Tensor:
    ids = Flux2KleinPipeline._prepare_latent_ids(x_t)
    tokens = pipeline.transformer(
        hidden_states=Flux2KleinPipeline._pack_latents(x_t),
        timestep=sigma.float(),
        guidance=guidance,
        encoder_hidden_states=tensors["sequence"],
        txt_ids=Flux2KleinPipeline._prepare_text_ids(tensors["sequence"]),
        img_ids=ids,
    ).sample
    return Flux2KleinPipeline._unpack_latents_with_ids(tokens, ids)


def flux2_network(pipeline: Any, x_t: Tensor, sigma: Tensor, tensors: Tensors) -> Tensor:
    return klein_network(pipeline, x_t, sigma, tensors, torch.full((len(x_t),), GUIDANCE))


def qwen_prompts(pipeline: Any, prompts: list[str]) -> tuple[Tensors, Tensors]:
    (sequence, mask), (space, _) = (
        pipeline.encode_prompt(each, max_sequence_length=512)
        for each in (prompts, [" "] * len(prompts))
    )
    whole = torch.ones(space.shape[:2], dtype=torch.bool)
    mask = torch.ones(sequence.shape[:2]) if mask is None else mask
    return {"sequence": sequence, "mask": mask.bool()}, {"sequence": space, "mask": whole}


def qwen_network(pipeline: Any, x_t: Tensor, sigma: Tensor, tensors: Tensors) -> Tensor:
    b, _, h, w = x_t.shape
    tokens = pipeline.transformer(
        hidden_states=QwenImagePipeline._pack_latents(x_t, *x_t.shape),
        timestep=sigma.float(),
        encoder_hidden_states=tensors["sequence"],
        encoder_hidden_states_mask=tensors["mask"],
        img_shapes=[[(1, h // 2, w // 2)]] * b,
    ).sample
    return QwenImagePipeline._unpack_latents(tokens, 4 * h, 4 * w, 4)[:, :, 0]


def qwen_guidance(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Every token keeps the length that it has under the prompt."""
    tokens, own = (
        QwenImagePipeline._pack_latents(each, *each.shape)
        for each in (linear(cond, uncond, scale), cond)
    )
    lengths = [each.square().sum(-1, keepdim=True).sqrt() for each in (own, tokens)]
    h, w = cond.shape[2:]
    rescaled = tokens * lengths[0] / lengths[1]
    return QwenImagePipeline._unpack_latents(rescaled, 4 * h, 4 * w, 4)[:, :, 0]


def z_image_prompts(pipeline: Any, prompts: list[str]) -> tuple[Tensors, Tensors]:
    rows, empty = pipeline.encode_prompt(list(prompts))
    return {"sequence": rows}, {"sequence": empty}


def z_image_network(pipeline: Any, x_t: Tensor, sigma: Tensor, tensors: Tensors) -> Tensor:
    frames, timestep = list(x_t.unsqueeze(2)), ((1000 - 1000 * sigma) / 1000).float()
    from_noise = pipeline.transformer(frames, timestep, tensors["sequence"]).sample
    return -torch.cat(from_noise, dim=1).transpose(0, 1)


def chroma_prompts(pipeline: Any, prompts: list[str]) -> tuple[Tensors, Tensors]:
    sequence, _, mask, empty, _, empty_mask = pipeline.encode_prompt(prompts)
    return {"sequence": sequence, "mask": mask}, {"sequence": empty, "mask": empty_mask}


def chroma_network(pipeline: Any, x_t: Tensor, sigma: Tensor, tensors: Tensors) -> Tensor:
    b, _, h, w = x_t.shape
    tokens = pipeline.transformer(
        hidden_states=FluxPipeline._pack_latents(x_t, *x_t.shape),
        timestep=sigma.float(),
        encoder_hidden_states=tensors["sequence"],
        txt_ids=torch.zeros(tensors["sequence"].shape[1], 3),
        img_ids=FluxPipeline._prepare_latent_image_ids(b, h // 2, w // 2, "cpu", torch.float32),
        attention_mask=pipeline._prepare_attention_mask(b, h * w // 4, x_t.dtype, tensors["mask"]),
    ).sample
    return FluxPipeline._unpack_latents(tokens, 4 * h, 4 * w, 4)


def ernie_prompts(pipeline: Any, prompts: list[str]) -> tuple[Tensors, Tensors]:
    rows, empty = (pipeline.encode_prompt(each, "cpu") for each in (prompts, [""] * len(prompts)))
    return {"sequence": rows}, {"sequence": empty}


def ernie_network(pipeline: Any, x_t: Tensor, sigma: Tensor, tensors: Tensors) -> Tensor:
    texts, lengths = pipeline._pad_text(tensors["sequence"], "cpu", torch.float32, 8)
    return pipeline.transformer(
        x_t, (1000 * sigma).float(), text_bth=texts, text_lens=lengths, return_dict=False
    )[0]


def krea2_prompts(pipeline: Any, prompts: list[str]) -> tuple[Tensors, Tensors]:
    def rows(texts: list[str]) -> Tensors:
        sequence, mask = pipeline.encode_prompt(texts)
        return {"sequence": [row[own] for row, own in zip(sequence, mask, strict=True)]}

    return rows(prompts), rows([""] * len(prompts))


def krea2_network(pipeline: Any, x_t: Tensor, sigma: Tensor, tensors: Tensors) -> Tensor:
    """Row by row, as long as its prompt."""
    b, c, h, w = x_t.shape
    given = pipeline._pack_latents(x_t, b, c, h, w), sigma.float(), tensors["sequence"]
    tokens = [
        pipeline.transformer(
            hidden_states=row[None],
            timestep=level[None],
            encoder_hidden_states=text[None],
            position_ids=pipeline.prepare_position_ids(len(text), h // 2, w // 2, "cpu"),
        ).sample
        for row, level, text in zip(*given, strict=True)
    ]
    return pipeline._unpack_latents(torch.cat(tokens), 4 * h, 4 * w)[:, :, 0]


def gemma_prompts(pipeline: Any, prompts: list[str]) -> tuple[Tensors, Tensors]:
    sequence, mask, empty, empty_mask = pipeline.encode_prompt(prompts)
    return (
        {"sequence": sequence, "mask": mask.bool()},
        {"sequence": empty, "mask": empty_mask.bool()},
    )


def lumina2_network(pipeline: Any, x_t: Tensor, sigma: Tensor, tensors: Tensors) -> Tensor:
    level = 1 - (1000 * sigma).float() / 1000
    return -pipeline.transformer(x_t, level, tensors["sequence"], tensors["mask"]).sample


def lumina2_guidance(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    guided = linear(cond, uncond, scale)
    lengths = [each.square().sum(-1, keepdim=True).sqrt() for each in (cond, guided)]
    return guided * lengths[0] / lengths[1]


def qwen_21_prompts(pipeline: Any, prompts: list[str]) -> tuple[Tensors, Tensors]:
    def rows(texts: list[str]) -> Tensors:
        return {"sequence": [pipeline.encode_prompt(text)[0][0] for text in texts]}

    return rows(prompts), rows([" "] * len(prompts))


def qwen_21_network(pipeline: Any, x_t: Tensor, sigma: Tensor, tensors: Tensors) -> Tensor:
    h, w = x_t.shape[2:]
    tokens = [
        pipeline.transformer(
            hidden_states=row.flatten(1).T[None],
            timestep=level[None],
            encoder_hidden_states=text[None],
            img_shapes=[[(1, h, w)]],
            img_mask=torch.arange(len(text) + h * w // 4)[None] >= len(text),
        ).sample[0, -h * w :]
        for row, level, text in zip(x_t, sigma.float(), tensors["sequence"], strict=True)
    ]
    return torch.stack(tokens).transpose(1, 2).unflatten(2, (h, w))


def sana_prompts(pipeline: Any, prompts: list[str]) -> tuple[Tensors, Tensors]:
    instruction = signature(type(pipeline).__call__).parameters["complex_human_instruction"].default
    sequence, mask, empty, empty_mask = pipeline.encode_prompt(
        prompts, complex_human_instruction=instruction
    )
    return (
        {"sequence": sequence, "mask": mask.bool()},
        {"sequence": empty, "mask": empty_mask.bool()},
    )


def sana_network(pipeline: Any, x_t: Tensor, sigma: Tensor, tensors: Tensors) -> Tensor:
    mask, level = tensors["mask"].float(), (1000 * sigma).float()
    return pipeline.transformer(x_t, tensors["sequence"], level, encoder_attention_mask=mask).sample


def aura_flow_prompts(pipeline: Any, prompts: list[str]) -> tuple[Tensors, Tensors]:
    sequence, _, empty, _ = pipeline.encode_prompt(prompts)
    return {"sequence": sequence}, {"sequence": empty}


def aura_flow_network(pipeline: Any, x_t: Tensor, sigma: Tensor, tensors: Tensors) -> Tensor:
    return pipeline.transformer(x_t, tensors["sequence"], sigma.float()).sample


def hidream_prompts(pipeline: Any, prompts: list[str]) -> tuple[Tensors, Tensors]:
    sequence, empty, layers, empty_layers, pooled, empty_pooled = pipeline.encode_prompt(prompts)
    return (
        {"sequence": sequence, "layers": layers.transpose(0, 1), "pooled": pooled},
        {"sequence": empty, "layers": empty_layers.transpose(0, 1), "pooled": empty_pooled},
    )


def hidream_network(pipeline: Any, x_t: Tensor, sigma: Tensor, tensors: Tensors) -> Tensor:
    """Its experts in training mode: in the other they have no gradient."""
    experts = [
        each for each in pipeline.transformer.modules() if isinstance(each, MOEFeedForwardSwiGLU)
    ]
    for each in experts:
        each.train()
    answer = pipeline.transformer(
        x_t,
        timesteps=(1000 * sigma).float(),
        encoder_hidden_states_t5=tensors["sequence"],
        encoder_hidden_states_llama3=tensors["layers"].transpose(0, 1),
        pooled_embeds=tensors["pooled"],
    ).sample
    for each in experts:
        each.eval()
    return -answer


def sd_prompts(pipeline: Any, prompts: list[str]) -> tuple[Tensors, Tensors]:
    sequence, empty = pipeline.encode_prompt(prompts, "cpu", 1, do_classifier_free_guidance=True)
    return {"sequence": sequence}, {"sequence": empty}


def two_clip_prompts(pipeline: Any, prompts: list[str]) -> tuple[Tensors, Tensors]:
    more = (None, None) if hasattr(pipeline, "tokenizer_3") else ()
    sequence, empty, pooled, empty_pooled = pipeline.encode_prompt(prompts, *more)
    return {"sequence": sequence, "pooled": pooled}, {"sequence": empty, "pooled": empty_pooled}


def kolors_prompts(pipeline: Any, prompts: list[str]) -> tuple[Tensors, Tensors]:
    sequence, empty, pooled, empty_pooled = pipeline.encode_prompt(prompts)
    return {"sequence": sequence, "pooled": pooled}, {"sequence": empty, "pooled": empty_pooled}


def sd3_network(pipeline: Any, x_t: Tensor, sigma: Tensor, tensors: Tensors) -> Tensor:
    return pipeline.transformer(
        x_t, tensors["sequence"], tensors["pooled"], (1000 * sigma).float()
    ).sample


def unet_network(pipeline: Any, x_t: Tensor, sigma: Tensor, tensors: Tensors) -> Tensor:
    table = (1 - pipeline.scheduler.alphas_cumprod.double()).sqrt().numpy()
    timesteps = torch.from_numpy(np.interp(sigma.numpy(), table, np.arange(len(table)))).float()
    added = None
    if "pooled" in tensors:
        height, width = 4 * x_t.shape[2], 4 * x_t.shape[3]
        size = torch.tensor([[height, width, 0, 0, height, width]] * len(x_t), dtype=torch.float32)
        added = {"text_embeds": tensors["pooled"], "time_ids": size}
    return pipeline.unet(x_t, timesteps, tensors["sequence"], added_cond_kwargs=added).sample
