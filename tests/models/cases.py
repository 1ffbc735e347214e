"""One entry per kind of checkpoint: a tiny one, and how diffusers' own pipeline and raw network are
called.

A new architecture is tested by an entry here; every test of test_equality.py runs over all of them.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    FluxPipeline,
    QwenImage21Pipeline,
    QwenImagePipeline,
)
from torch import Tensor
from transformers import PreTrainedTokenizerFast, ProcessorMixin

from directalign.config import ModelConfig
from directalign.diffusion.sampling import encode
from directalign.evaluation.generate import save_png
from directalign.models import load_model, lora, model_class
from directalign.types import Sources
from models.qwen_edit_calls import edit_network, edit_prompts, pictures, source_reader
from models.srpo_by_hand import PROMPTS
from tiny import (
    BY_TOKENS,
    MAX_SEQUENCE_LENGTH,
    MEDIUM,
    SIZE,
    SIZES,
    ZERO_SNR,
    write_aura_flow,
    write_chroma,
    write_ernie_image,
    write_flux,
    write_flux2,
    write_flux_kontext,
    write_klein,
    write_krea2,
    write_lumina2,
    write_qwen_image,
    write_qwen_image_21,
    write_qwen_image_edit,
    write_qwen_image_edit_plus,
    write_sana,
    write_sd,
    write_sd3,
    write_sdxl,
    write_z_image,
)

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


def sd_prompts(pipeline: Any, prompts: list[str]) -> tuple[Tensors, Tensors]:
    sequence, empty = pipeline.encode_prompt(prompts, "cpu", 1, do_classifier_free_guidance=True)
    return {"sequence": sequence}, {"sequence": empty}


def two_clip_prompts(pipeline: Any, prompts: list[str]) -> tuple[Tensors, Tensors]:
    more = (None, None) if hasattr(pipeline, "tokenizer_3") else ()
    sequence, empty, pooled, empty_pooled = pipeline.encode_prompt(prompts, *more)
    return {"sequence": sequence, "pooled": pooled}, {"sequence": empty, "pooled": empty_pooled}


def sd3_network(pipeline: Any, x_t: Tensor, sigma: Tensor, tensors: Tensors) -> Tensor:
    return pipeline.transformer(
        x_t, tensors["sequence"], tensors["pooled"], (1000 * sigma).float()
    ).sample


def unet_network(pipeline: Any, x_t: Tensor, sigma: Tensor, tensors: Tensors) -> Tensor:
    table = (1 - pipeline.scheduler.alphas_cumprod.double()).sqrt().numpy()
    timesteps = torch.from_numpy(np.interp(sigma.numpy(), table, np.arange(1000))).float()
    added = None
    if "pooled" in tensors:
        height, width = 4 * x_t.shape[2], 4 * x_t.shape[3]
        size = torch.tensor([[height, width, 0, 0, height, width]] * len(x_t), dtype=torch.float32)
        added = {"text_embeds": tensors["pooled"], "time_ids": size}
    return pipeline.unet(x_t, timesteps, tensors["sequence"], added_cond_kwargs=added).sample


@dataclass(frozen=True)
class Case:
    """`settings` go to `write`; `prompts` and `network` call the library."""

    architecture: str
    write: Callable[..., Path]
    prompts: Callable[..., tuple[Tensors, Tensors]]
    network: Callable[..., Tensor]
    vae: Any = field(default_factory=AutoencoderCalls)
    settings: Mapping[str, Any] = field(default_factory=dict)
    eight_bits: Mapping[str, Any] = field(default_factory=dict)
    """Settings of a model wide enough to be quantized."""
    guidance: Callable[..., Tensor] = linear
    embedded: float | None = None
    two_passes: bool = True
    """Whether it can be guided by the unconditional prompt."""
    cell: int = 4
    """Pixels per latent."""
    packed: Any = None
    """The pipeline's class, where its call takes packed latents."""
    edits: bool = False
    """Whether it edits images, `sources_of` the size: `network` gets them."""

    def sources(self, height: int, width: int, count: int = 2) -> Sources | None:
        return sources_of(height, width, count) if self.edits else None

    @property
    def reads_sources(self) -> bool:
        """Whether prompts are encoded with the sources: `prompts` gets them."""
        return model_class(self.architecture).reads_sources

    def encode(self, model: Any, prompts: list[str], height: int = SIZE, width: int = SIZE) -> Any:
        sources = self.sources(height, width, len(prompts))
        return encode(model, prompts, sources and sources.images)

    def library_prompts(
        self, pipeline: Any, prompts: list[str], width: int
    ) -> tuple[Tensors, Tensors]:
        given = (self.sources(SIZE, width, len(prompts)),) if self.reads_sources else ()
        return self.prompts(pipeline, prompts, *given)

    def library_network(self, pipeline: Any, x_t: Tensor, *given: Any) -> Tensor:
        height, width = (self.cell * side for side in x_t.shape[2:])
        sources = (self.sources(height, width),) if self.edits else ()
        return self.network(pipeline, x_t, *given, *sources)

    def folder(self, folder: Path, **more: Any) -> Path:
        return self.write(folder, **{**self.settings, **more})

    def load(self, folder: Path, **settings: Any) -> Any:
        given = {"tune": "full", **settings}
        return load_model(
            ModelConfig(architecture=self.architecture, path=str(folder), **given), "cpu"
        )

    def pipeline(self, folder: Path) -> Any:
        kind = getattr(diffusers, model_class(self.architecture).pipeline)
        absent = {"sd": ["safety_checker"], "sd3": ["text_encoder_3", "tokenizer_3"]}
        names = [n for n in absent.get(self.architecture, []) if not (folder / n).exists()]
        given = dict[str, Any](dict.fromkeys(names))
        if self.reads_sources:
            given["processor"] = source_reader(folder)
        elif (folder / "processor").exists():
            given["processor"] = TextProcessor(folder / "processor")
        pipeline = kind.from_pretrained(folder, **given)
        if hasattr(pipeline, "unet"):  # sampled with DDIM to clean, whatever the folder names
            pipeline.scheduler = DDIMScheduler.from_config(
                pipeline.scheduler.config, clip_sample=False, set_alpha_to_one=True
            )
        elif "flow_shift" in pipeline.scheduler.config:  # sampled with Euler under its shift
            shift = pipeline.scheduler.config["flow_shift"]
            pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def call(
        self, pipeline: Any, model: Any, prompts: list[str], noise: Any, rollout: Any, **more: Any
    ) -> Tensor:
        """The pipeline's own sampling of `prompts` from our noise, images in [0, 1]."""
        n, h, w = rollout.num_inference_steps, *noise.shape[2:]
        given = {"output_type": "pt", **model.call_arguments(rollout), "num_inference_steps": n}
        if "negative_prompt" in given:
            given["negative_prompt"] = [given["negative_prompt"]] * len(prompts)
        if self.architecture == "z_image":  # early releases repeat the last level
            given["sigmas"] = np.linspace(1, 1 / n, n).tolist()
        if self.packed is QwenImage21Pipeline or self.reads_sources:
            # the places of an image depend on the longest prompt; sources are not resized in lists
            return self._call_singly(pipeline, prompts, noise, given | more)
        given["latents"] = self.packed._pack_latents(noise, *noise.shape) if self.packed else noise
        size = {"height": self.cell * h, "width": self.cell * w}
        given |= {"prompt": list(prompts), **size, **more}
        if self.edits:
            given["image"] = sources_of(*size.values()).images
            given["max_area"] = size["height"] * size["width"]
        return pipeline(**given).images

    def _call_singly(
        self, pipeline: Any, prompts: list[str], noise: Tensor, given: Mapping[str, Any]
    ) -> Tensor:
        size = {"height": self.cell * noise.shape[2], "width": self.cell * noise.shape[3]}
        found, sources = [], self.sources(*size.values(), len(prompts))
        for place, (prompt, row) in enumerate(zip(prompts, noise, strict=True)):
            own = {**given, "prompt": prompt, "latents": row.flatten(1).T[None], **size}
            if sources is not None:
                own["latents"] = self.packed._pack_latents(row, 1, *row.shape)
                own["image"] = pictures(sources)[place]
            negative = {"negative_prompt": " "} if "negative_prompt" in given else {}
            found.append(pipeline(**own | negative).images)
        images = torch.cat(found)
        return over_white(images) if images.ndim == images.shape[1] == 4 else images

    def latents(self, images: Tensor, pipeline: Any) -> Tensor:
        """The pipeline's output_type="latent" in our layout and scale."""
        if self.architecture == "flux2_klein":
            return self.vae.rescaled(pipeline, images)
        if self.architecture == "flux2":
            return images.transpose(1, 2).unflatten(2, (SIZE // self.cell, -1))
        if self.packed is None:
            return images
        latents = self.packed._unpack_latents(images, SIZE, SIZE, self.cell)
        return latents if latents.ndim == 4 else latents[:, :, 0]


SHIFTED = AutoencoderCalls(shift=0.1)
BY_SIZE = {"scheduler": BY_TOKENS}
FLUX = {
    "prompts": flux_prompts,
    "network": flux_network,
    "vae": SHIFTED,
    "embedded": GUIDANCE,
    "packed": FluxPipeline,
}
SD = {"prompts": sd_prompts, "network": unet_network}
SDXL = {"prompts": two_clip_prompts, "network": unet_network}
SD3 = {"prompts": two_clip_prompts, "network": sd3_network, "vae": SHIFTED}
Z_IMAGE = {"prompts": z_image_prompts, "network": z_image_network, "vae": SHIFTED}
V_ZERO_SNR = {"prediction_type": "v_prediction", "scheduler": ZERO_SNR}
SDXL_V = {**V_ZERO_SNR, "force_zeros_for_empty_prompt": False, "force_upcast": False}
EIGHT_HEADS = {"transformer": {"num_attention_heads": 8}}
WIDE_SDXL = {"unet": {"block_out_channels": (8, 64)}}
WIDE_SD3 = {"transformer": {"attention_head_dim": 64, "caption_projection_dim": 128}}
WIDE_Z_IMAGE = {"transformer": {"dim": 64, "n_heads": 8, "n_kv_heads": 8}}

CASES = {
    "flux": Case("flux", write_flux, **FLUX),
    "flux_by_size": Case("flux", write_flux, settings=BY_SIZE, **FLUX),
    "flux_kontext": Case(
        "flux_kontext", write_flux_kontext, **FLUX | {"network": kontext_network}, edits=True
    ),
    "flux2": Case(
        *("flux2", write_flux2, klein_prompts, flux2_network, KleinCalls()),
        eight_bits=EIGHT_HEADS,
        embedded=GUIDANCE,
        two_passes=False,
        cell=8,
    ),
    "flux2_klein": Case(
        *("flux2_klein", write_klein, klein_prompts, klein_network, KleinCalls()),
        eight_bits=EIGHT_HEADS,
        cell=8,
    ),
    "sd": Case("sd", write_sd, **SD),
    "sd_v": Case("sd", write_sd, settings={"prediction_type": "v_prediction"}, **SD),
    "sd_v_zero_snr": Case("sd", write_sd, settings=V_ZERO_SNR, **SD),
    "sd_not_to_clean": Case(
        "sd", write_sd, settings={"scheduler": {"set_alpha_to_one": False}}, **SD
    ),
    "sdxl": Case("sdxl", write_sdxl, eight_bits=WIDE_SDXL, **SDXL),
    "sdxl_v_zero_snr": Case("sdxl", write_sdxl, settings=SDXL_V, **SDXL),
    "sd3": Case("sd3", write_sd3, eight_bits=WIDE_SD3, **SD3),
    "sd3_by_size": Case("sd3", write_sd3, settings=BY_SIZE, **SD3),
    "sd35_medium": Case("sd3", write_sd3, settings={"transformer": MEDIUM}, **SD3),
    "sd3_without_t5": Case("sd3", write_sd3, settings={"t5": False}, **SD3),
    "qwen_image": Case(
        *("qwen_image", write_qwen_image, qwen_prompts, qwen_network, QwenCalls()),
        eight_bits=EIGHT_HEADS,
        guidance=qwen_guidance,
        packed=QwenImagePipeline,
    ),
    **{
        name: Case(
            *(name, write, edit_prompts, edit_network, QwenCalls()),
            eight_bits=EIGHT_HEADS,
            guidance=qwen_guidance,
            packed=QwenImagePipeline,
            edits=True,
        )
        for name, write in (
            ("qwen_image_edit", write_qwen_image_edit),
            ("qwen_image_edit_plus", write_qwen_image_edit_plus),
        )
    },
    "chroma": Case(
        *("chroma", write_chroma, chroma_prompts, chroma_network, SHIFTED),
        eight_bits=EIGHT_HEADS,
        packed=FluxPipeline,
    ),
    "ernie_image": Case(
        *("ernie_image", write_ernie_image, ernie_prompts, ernie_network, ErnieCalls()),
        eight_bits={"transformer": {"hidden_size": 64, "rope_axes_dim": [16, 8, 8]}},
        cell=8,
    ),
    "krea2": Case(
        *("krea2", write_krea2, krea2_prompts, krea2_network, QwenCalls()),
        eight_bits=EIGHT_HEADS,
        packed=QwenImagePipeline,
    ),
    "krea2_distilled": Case(
        *("krea2", write_krea2, krea2_prompts, krea2_network, QwenCalls()),
        settings={"is_distilled": True},
        two_passes=False,
        packed=QwenImagePipeline,
    ),
    "lumina2": Case(
        *("lumina2", write_lumina2, gemma_prompts, lumina2_network, SHIFTED),
        eight_bits={"transformer": {"hidden_size": 64, "axes_dim_rope": [16, 8, 8]}},
        guidance=lumina2_guidance,
    ),
    "qwen_image_21": Case(
        *("qwen_image_21", write_qwen_image_21, qwen_21_prompts, qwen_21_network, Qwen21Calls()),
        eight_bits=EIGHT_HEADS,
        cell=16,
        packed=QwenImage21Pipeline,
    ),
    "sana": Case(
        *("sana", write_sana, sana_prompts, sana_network, SanaCalls()),
        eight_bits={"transformer": {"num_attention_heads": 8, "cross_attention_dim": 64}},
    ),
    "aura_flow": Case(
        *("aura_flow", write_aura_flow, aura_flow_prompts, aura_flow_network),
        eight_bits={"transformer": {"num_attention_heads": 8, "caption_projection_dim": 64}},
    ),
    "z_image": Case("z_image", write_z_image, eight_bits=WIDE_Z_IMAGE, **Z_IMAGE),
    "z_image_by_size": Case("z_image", write_z_image, settings=BY_SIZE, **Z_IMAGE),
}
PLAIN = tuple(dict.fromkeys(case.architecture for case in CASES.values()))
"""One case per architecture, for what does not differ within it."""


def load_trained(model: Any, folder: Path) -> None:
    """Load what `model.save(folder)` wrote."""
    lora.load(model.denoiser, folder, model.part)
