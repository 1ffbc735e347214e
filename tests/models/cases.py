"""One entry per kind of checkpoint: a tiny one, and how diffusers' own pipeline and raw network are
called.

A new architecture is tested by an entry here; every test of test_equality.py runs over all of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    QwenImage21Pipeline,
    QwenImagePipeline,
)
from torch import Tensor

from directalign.config import ModelConfig
from directalign.diffusion.sampling import encode
from directalign.models import load_model, lora, model_class
from directalign.types import Sources
from models.library_calls import (
    GUIDANCE,
    AutoencoderCalls,
    ErnieCalls,
    KleinCalls,
    Qwen21Calls,
    QwenCalls,
    SanaCalls,
    Tensors,
    TextProcessor,
    aura_flow_network,
    aura_flow_prompts,
    chroma_network,
    chroma_prompts,
    ernie_network,
    ernie_prompts,
    flux2_network,
    flux_network,
    flux_prompts,
    gemma_prompts,
    hidream_network,
    hidream_prompts,
    klein_network,
    klein_prompts,
    kolors_prompts,
    kontext_network,
    krea2_network,
    krea2_prompts,
    linear,
    lumina2_guidance,
    lumina2_network,
    over_white,
    qwen_21_network,
    qwen_21_prompts,
    qwen_guidance,
    qwen_network,
    qwen_prompts,
    sana_network,
    sana_prompts,
    sd3_network,
    sd_prompts,
    sources_of,
    two_clip_prompts,
    unet_network,
    z_image_network,
    z_image_prompts,
)
from models.qwen_edit_calls import edit_network, edit_prompts, pictures, source_reader
from tiny import (
    BY_TOKENS,
    MEDIUM,
    SIZE,
    ZERO_SNR,
    write_aura_flow,
    write_chroma,
    write_ernie_image,
    write_flux,
    write_flux2,
    write_flux_kontext,
    write_hidream,
    write_klein,
    write_kolors,
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
        if hasattr(pipeline, "tokenizer_4"):  # it scales every size to the area of this one
            pipeline.default_sample_size = SIZE // self.cell
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
        for name, value in model.call_settings(*size.values()).items():
            setattr(pipeline, name, value)
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
    "kolors": Case(
        *("kolors", write_kolors, kolors_prompts, unet_network),
        eight_bits={"unet": {"block_out_channels": (8, 64)}},
    ),
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
    "hidream": Case(
        *("hidream", write_hidream, hidream_prompts, hidream_network, SHIFTED),
        eight_bits={"transformer": {"num_attention_heads": 8}},
    ),
    "z_image": Case("z_image", write_z_image, eight_bits=WIDE_Z_IMAGE, **Z_IMAGE),
    "z_image_by_size": Case("z_image", write_z_image, settings=BY_SIZE, **Z_IMAGE),
}
PLAIN = tuple(dict.fromkeys(case.architecture for case in CASES.values()))
"""One case per architecture, for what does not differ within it."""


def load_trained(model: Any, folder: Path) -> None:
    """Load what `model.save(folder)` wrote."""
    lora.load(model.denoiser, folder, model.part)
