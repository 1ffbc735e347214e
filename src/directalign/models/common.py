"""What the architectures share: the base class, tokenization, and tokens of latents."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any, ClassVar

import diffusers
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle

from .. import config
from ..diffusion.path import DDPMTable, classifier_free_guidance
from ..types import (
    Conditioning,
    DirectAlignError,
    Images,
    Latents,
    PathName,
    PerSample,
    PredictionName,
)
from . import lora, noise_schedule, vae
from .checkpoint_source import Source
from .components import Parts, load_parts
from .text_encoder import PromptEncoder

JOINT_ATTENTION = (
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
)
"""Layers of joint attention, over the image's tokens and the text's, that LoRA adapts."""


class DiffusersModel:
    """Base of the architectures: an `interfaces.Model` made of the parts of a diffusers pipeline.

    A subclass sets the attributes below, writes `_embed` and `_predict`, and overrides what
    differs. The defaults are those of a rectified flow on packed latents with an AutoencoderKL.
    """

    title: str
    """The architecture's name in messages."""
    pipeline: str
    part: str = "transformer"
    parts: Parts
    """Each part of the pipeline that is loaded, and its class; None for any class."""
    optional_parts: tuple[str, ...] = ()
    """Parts that model_index.json may set to null."""
    separate_parts: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Parts that checkpoints may come without, by the key of `model.args` that names their folder.
    """
    left_out: ClassVar[Mapping[str, str]] = {}
    """Why releases of this pipeline are not supported, and what to give instead, by hub id."""
    text_parts: tuple[str, ...] = ("text_encoder",)
    masks_attention: bool = False
    """Whether attention takes a mask where prompts of a batch differ in length."""
    unconditional: str = ""
    """The prompt of the unguided pass."""
    packing: int = 4
    """Input channels of the denoiser for each channel of the latents."""
    lora_layout: str = ""
    """Key of the layer names that `export` writes for ComfyUI and kohya; empty if there are none.
    """
    components: str = ""
    """A hub id that completes a single file: an example for messages, never loaded by default."""
    max_sequence_length: int = 0
    """Tokens of a prompt, as in the pipeline's call; 0 where that has no such argument."""
    usual_cfg: float = 1.0
    """`cfg_scale` that it is usually sampled with; 1 where guidance is an input."""
    guidance_origin: float = 0.0
    """The `cfg_scale` at which the pipeline's guidance_scale is 0."""
    edits_images: bool = False
    """Whether it edits source images: an `interfaces.EditingModel`."""
    reads_sources: bool = False
    """Whether its text encoder reads each prompt with the source image."""
    caches_blocks: bool = False
    """Whether diffusers' First Block Cache supports the denoiser (`rollout.cache`)."""
    is_distilled: bool = False
    """Whether the checkpoint is not guided by a second pass: `cfg_scale` must be 1."""
    published: str = ""
    """Config in models/known whose sizes stand for a hub id that is neither cached nor known."""
    path: PathName = "flow"
    prediction: PredictionName = "velocity"
    lora_targets: tuple[str, ...]

    def __init__(
        self, source: Source, model: config.ModelConfig, device: torch.device, seed: int
    ) -> None:
        self.model, self.device, self.dtype = model, device, getattr(torch, model.dtype)
        self.index = source.index()
        wanted = self.parts_in(self.index)
        trained = getattr(torch, model.trained_dtype) if model.tune == "full" else self.dtype
        dtypes: dict[str, Any] = dict.fromkeys(wanted, self.dtype) | {self.part: trained}
        dtypes |= self._dtypes(source.folder) if source.pipeline is None else {}
        parts = load_parts(source, self.pipeline, wanted, dtypes)
        self.check(source.folder, parts)
        self._setup(source.folder, parts)
        self.denoiser: Any = lora.ready(parts[self.part], model, self.lora_targets, device, seed)
        encoders = {name: parts[name] for name in self.text_parts if name in parts}
        self.prompts = PromptEncoder(encoders, self._embed, device, model.text_encoders)
        self.empty_prompt = self._empty_prompt()

    @classmethod
    def parts_in(cls, index: Mapping[str, Any]) -> dict[str, type | None]:
        """The parts by the content of model_index.json, without optional ones that are null."""
        absent = {name for name in cls.optional_parts if not (index.get(name) or [None])[0]}
        return {name: kind for name, kind in cls.parts.items() if name not in absent}

    @classmethod
    def check(cls, folder: FilePath, parts: Mapping[str, Any]) -> None:
        """Raise DirectAlignError, naming the file, unless this is a plain text-to-image model."""
        cls._check_channels(folder, parts)
        noise_schedule.check_euler(folder, parts["scheduler"])

    @classmethod
    def _check_channels(cls, folder: FilePath, parts: Mapping[str, Any]) -> None:
        channels, latents = parts[cls.part].config["in_channels"], parts["vae"].config
        wanted = cls.packing * (latents.get("latent_channels") or latents["z_dim"])
        if channels != wanted:
            raise DirectAlignError(
                f"{folder / cls.part}: takes {channels} channels, text-to-image needs {wanted}: "
                f"give a plain {cls.title} in model.path, not an inpainting or editing model"
            )

    def _dtypes(self, folder: FilePath) -> dict[str, torch.dtype]:
        """Dtypes of parts that differ from the recipe's."""
        del folder
        return {}

    def _setup(self, folder: FilePath, parts: Mapping[str, Any]) -> None:
        """Set everything but the denoiser and the prompts from the loaded parts."""
        del folder
        self.scheduler: Any = parts["scheduler"]
        self.tokenizers = [part for name, part in parts.items() if name.startswith("tokenizer")]
        self.vae: Any = vae.ready(parts["vae"], self.model, self.device)
        self.default_size = (self.vae.config["sample_size"],) * 2
        self.multiple = 2 * vae.downscaling(self.vae)

    def encode_prompt(self, prompts: Sequence[str]) -> Conditioning:
        """The tensors of `_embed`, each (b, ...), for the prompts and the unconditional prompt."""
        return self.prompts.conditioning(prompts, self.empty_prompt)

    def _embed(self, prompts: list[str]) -> dict[str, Tensor]:
        """Text encoders' tensors by name, each (b, ...), from the modules in `self.prompts`."""
        raise NotImplementedError

    def _empty_prompt(self) -> dict[str, Tensor]:
        return self.prompts([self.unconditional])

    def _tokens(self, texts: Sequence[str], length: int, tokenizer: int = 0, **options: Any) -> Any:
        """Texts cut and padded to `length` tokens on the device: `input_ids`, `attention_mask`."""
        return self.tokenizers[tokenizer](
            list(texts),
            max_length=length,
            truncation=True,
            return_tensors="pt",
            **{"padding": "max_length", **options},
        ).to(self.device)

    def _chat(self, prompts: Sequence[str], thinking: bool) -> list[str]:
        """Each prompt as the user's turn in the chat template of the first tokenizer."""
        template = self.tokenizers[0].apply_chat_template
        options = {"add_generation_prompt": True, "enable_thinking": thinking, "tokenize": False}
        return [template([{"role": "user", "content": prompt}], **options) for prompt in prompts]

    def _clip_states(self, prompts: list[str]) -> tuple[Tensor, list[Any]]:
        """Penultimate states of two CLIPs side by side (b, tokens, d1 + d2), and their outputs.

        Both read as many tokens as the first tokenizer does.
        """
        length = self.tokenizers[0].model_max_length
        outputs = [
            self.prompts.modules[name](
                self._tokens(prompts, length, number).input_ids, output_hidden_states=True
            )
            for number, name in enumerate(self.text_parts[:2])
        ]
        return torch.cat([output.hidden_states[-2] for output in outputs], -1), outputs

    def encode_image(self, images: Images) -> Latents:
        """Clean latents of images in [0, 1]: scaled mode of the posterior, float32, no gradient."""
        shift = self.vae.config.get("shift_factor") or 0.0
        return (vae.posterior_mode(self.vae, images) - shift) * self.vae.config["scaling_factor"]

    def decode(self, x0: Latents) -> Images:
        """Images around [0, 1], not clamped, float32, gradient intact."""
        shift = self.vae.config.get("shift_factor") or 0.0
        return vae.decode_unscaled(self.vae, x0 / self.vae.config["scaling_factor"] + shift)

    def predict(self, x_t: Latents, sigma: PerSample, cond: Conditioning) -> Latents:
        """`prediction` at x_t, float32; guided by the unconditional prompt unless `cfg_scale` is 1.

        Raises DirectAlignError for guidance that the checkpoint cannot take, or that it lacks.
        """
        self._check_guidance(cond)
        pred = self._pass("cond", x_t, sigma, cond)
        if cond.cfg_scale == 1.0:
            return pred
        if cond.unconditional is None:
            raise DirectAlignError(
                f"cfg_scale {cond.cfg_scale} needs the embedding of the empty prompt: "
                "encode the prompts with the model, or set cfg_scale 1"
            )
        with torch.set_grad_enabled(torch.is_grad_enabled() and not cond.detach_negative):
            other = replace(cond, tensors=cond.unconditional)
            uncond = self._pass("uncond", x_t, sigma, other)
        return self._guide(pred, uncond, cond.cfg_scale)

    def _pass(self, name: str, x_t: Latents, sigma: PerSample, cond: Conditioning) -> Tensor:
        """`_predict` in float32; a cache of blocks keeps a state under each name."""
        is_cached = getattr(self.denoiser, "is_cache_enabled", False)
        with self.denoiser.cache_context(name) if is_cached else nullcontext():
            return self._predict(x_t, sigma, cond).float()

    def _predict(self, x_t: Latents, sigma: PerSample, cond: Conditioning) -> Tensor:
        """One pass under `cond.tensors`; `prediction` as latents (b, c, h, w) of any dtype."""
        raise NotImplementedError

    def _network(self, *arguments: Any, **named: Any) -> Any:
        """The denoiser's first output, in mixed precision if the recipe's dtype is bfloat16."""
        low = self.dtype == torch.bfloat16
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=low):
            return self.denoiser(*arguments, return_dict=False, **named)[0]

    def _guide(self, cond: Latents, uncond: Latents, scale: float) -> Latents:
        return classifier_free_guidance(cond, uncond, scale)

    def _check_guidance(self, cond: Conditioning) -> None:
        if cond.embedded_guidance is not None:
            raise DirectAlignError(
                f"embedded guidance: {self.title} has no input for it: leave "
                "rollout.embedded_guidance and method.embedded_guidance out, use cfg_scale"
            )
        self._check_passes(cond)

    def _check_passes(self, cond: Conditioning) -> None:
        if self.is_distilled and cond.cfg_scale != 1.0:
            raise DirectAlignError(
                f"cfg_scale {cond.cfg_scale}: this {self.title} is distilled, without a second "
                "pass: set cfg_scale: 1, or give a base model"
            )

    def sigmas(self, num_inference_steps: int, height: int, width: int) -> Tensor:
        """The pipeline's grid: linspace(1, 1/n), shifted by a constant or by the number of tokens.

        (n + 1,) float64, falling, ends in 0.
        """
        _, h, w = self.latent_shape(height, width)
        exponent = noise_schedule.shift_by_size(self.scheduler, (h // 2) * (w // 2))
        return noise_schedule.euler_grid(self.scheduler, num_inference_steps, exponent)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(c, h, w) of the latents; both sides must be multiples of `multiple` pixels."""
        cell = vae.downscaling(self.vae)
        channels = self.vae.config["latent_channels"]
        return channels, *vae.grid(height, width, cell, self.multiple)

    def call_arguments(self, rollout: config.RolloutConfig) -> dict[str, Any]:
        """Arguments of the diffusers pipeline's call that sample as the rollout does."""
        length = {"max_sequence_length": self.max_sequence_length}
        scale = {"guidance_scale": rollout.cfg_scale - self.guidance_origin}
        return {**scale, **length} if self.max_sequence_length else scale

    def call_settings(self, height: int, width: int) -> dict[str, Any]:
        """Attributes of the diffusers pipeline under which its call makes images of this size."""
        del height, width
        return {}

    def save(self, folder: FilePath) -> None:
        """Write `lora.safetensors` for the pipeline, or all weights as `part`/."""
        lora.save(self.denoiser, folder, self.part, getattr(diffusers, self.pipeline))


class DDPMModel(DiffusersModel):
    """Base of the UNets on a variance-preserving path, sampled with DDIM (eta 0) to clean."""

    path = "vp"
    part = "unet"
    packing = 1
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")

    @classmethod
    def check(cls, folder: FilePath, parts: Mapping[str, Any]) -> None:
        noise_schedule.ddim(folder / "scheduler", parts["scheduler"])
        cls._check_channels(folder, parts)

    def _setup(self, folder: FilePath, parts: Mapping[str, Any]) -> None:
        super()._setup(folder, parts)
        unet, cell = parts["unet"].config, vae.downscaling(self.vae)
        self.scheduler = noise_schedule.ddim(folder / "scheduler", parts["scheduler"])
        self.prediction = noise_schedule.PREDICTIONS[self.scheduler.config["prediction_type"]]
        self.levels = DDPMTable(self.scheduler.alphas_cumprod)
        size = unet["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        self.default_size = (height * cell, width * cell)
        self.multiple = 2 ** (len(unet["block_out_channels"]) - 1) * cell

    def _timestep(self, x_t: Latents, sigma: PerSample) -> Tensor:
        """Needs sigma in float64: near 1, float32 does not resolve the timesteps."""
        return self.levels.timestep_of(sigma).to(x_t)

    def sigmas(self, num_inference_steps: int, height: int, width: int) -> Tensor:
        """Levels of DDIMScheduler's timesteps under the folder's spacing and offset, then 0.

        (n + 1,) float64; the image size has no effect.
        """
        return noise_schedule.ddim_grid(self.scheduler, self.levels, num_inference_steps)


def parts_of(
    denoiser: type,
    encoders: Sequence[type | None] = (None,),
    part: str = "transformer",
    vae: type = diffusers.AutoencoderKL,
    scheduler: type = diffusers.FlowMatchEulerDiscreteScheduler,
    tokenizer: str = "tokenizer",
) -> dict[str, type | None]:
    """`DiffusersModel.parts` of a denoiser and its text encoders, each with its own tokenizer."""
    numbers = ["", *(f"_{number}" for number in range(2, len(encoders) + 1))]
    tokenizers = {f"{tokenizer}{number}": None for number in numbers}
    texts = {f"text_encoder{n}": kind for n, kind in zip(numbers, encoders, strict=True)}
    return {**tokenizers, **texts, part: denoiser, "vae": vae, "scheduler": scheduler}


Tokens = Float[Tensor, "b tokens features"]


def pack(latents: Latents) -> Tokens:
    """(b, c, h, w) to (b, h/2·w/2, 4c), rows first; features are (c, row, column); h, w even."""
    return pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2).contiguous()


def unpack(tokens: Tokens, h: int, w: int) -> Latents:
    """The inverse of `pack` for latents of height h and width w."""
    return pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (h // 2, w // 2)), 2)


def image_places(h: int, w: int, device: torch.device) -> Int[Tensor, "tokens 4"]:
    """(0, row, column, 0) of every token of latents (h, w), one token per place."""
    rows, columns = torch.arange(h, device=device), torch.arange(w, device=device)
    return pad(torch.cartesian_prod(rows, columns), (1, 1))


def text_places(num_tokens: int, device: torch.device) -> Int[Tensor, "tokens 4"]:
    """(0, 0, 0, place in the text) of every text token."""
    return pad(torch.arange(num_tokens, device=device)[:, None], (3, 0))
