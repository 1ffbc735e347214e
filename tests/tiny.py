"""Tiny random pipelines as complete diffusers folders, one per architecture: tokenizers, text
encoders, VAE, denoiser and scheduler, some 200 kB each. Weights come from a seed, sizes from
`tiny_sizes.json`.

In each `write_*`, `scheduler` overrides the settings of the scheduler and `transformer` or `unet`
those of the denoiser. The session fixtures `tiny_flux`, `tiny_sd` and `tiny_sd_v` are read-only.
"""

import json
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.kolors import ChatGLMModel, ChatGLMTokenizer
from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from tokenizers import AddedToken
from transformers import CLIPTokenizer, T5TokenizerFast

from tiny_tokenizers import (
    CHAT_OF_PARTS,
    MAX_SEQUENCE_LENGTH,
    clip_tokenizer,
    gemma_tokenizer,
    qwen_tokenizer,
    sentencepiece_model,
    t5_tokenizer,
)

Overrides = dict[str, Any] | None

for module in (pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus):
    # Qwen-Image-Edit's sources are resized to 1024x1024 pixels whatever is made: here to 96x96
    module.calculate_dimensions = lambda area, ratio, of=module.calculate_dimensions: of(
        area / 100, ratio
    )

SIZES: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("tiny_sizes.json").read_text()
)
IMAGE = "<|image_pad|>"
SIZE = 32
"""Pixels of a tiny model's images along one side."""
BY_TOKENS = {
    "use_dynamic_shifting": True,
    "shift": 1.0,
    "base_image_seq_len": 4,
    "max_image_seq_len": 64,
}
"""Scheduler settings of a shift by the number of image tokens."""
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
"""Scheduler settings under which sampling starts at alpha = 0 exactly."""
MEDIUM = {"dual_attention_layers": (0,), "qk_norm": "rms_norm"}
"""What SD3.5-medium adds to SD3: a second attention in some blocks, normalised queries and keys."""


@pytest.fixture(scope="session")
def tiny_flux(tmp_path_factory):
    """FLUX with embedded guidance and a static shift."""
    return write_flux(tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory):
    """SD that predicts the noise."""
    return write_sd(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="session")
def tiny_sd_v(tmp_path_factory):
    """SD that predicts v, with zero terminal SNR."""
    return write_sd(tmp_path_factory.mktemp("sd_v"), "v_prediction", ZERO_SNR)


def saved(write: Callable[..., Any]) -> Callable[..., Path]:
    """Save the pipeline that `write` makes, its weights drawn with `seed`, into a folder."""

    @wraps(write)
    def written(folder: Path, *arguments: Any, seed: int = 0, **settings: Any) -> Path:
        torch.manual_seed(seed)
        write(*arguments, **settings).save_pretrained(folder)
        return folder

    return written


def write_flux(
    folder: Path,
    guidance_embeds: bool = True,
    scheduler: Overrides = None,
    in_channels: int | None = None,
    seed: int = 0,
    pipeline: type = diffusers.FluxPipeline,
) -> Path:
    """FLUX.1 with 16 image and 12 text tokens and a static shift of 3."""
    torch.manual_seed(seed)
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    sizes = SIZES["flux"] | ({"in_channels": in_channels} if in_channels else {})
    pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0} | (scheduler or {})),
        vae=autoencoder(latent_channels=4, shift_factor=0.1, scaling_factor=0.4),
        text_encoder=clip_encoder(transformers.CLIPTextModel, clip, num_hidden_layers=1),
        tokenizer=clip,
        text_encoder_2=t5_encoder(t5, width=16),
        tokenizer_2=t5,
        transformer=diffusers.FluxTransformer2DModel(**sizes, guidance_embeds=guidance_embeds),
    ).save_pretrained(folder)
    settings = {"max_sequence_length": MAX_SEQUENCE_LENGTH}
    (folder / "directalign.json").write_text(json.dumps(settings))
    return folder


write_flux_kontext = partial(write_flux, pipeline=diffusers.FluxKontextPipeline)


@saved
def write_sd(
    prediction_type: str = "epsilon", scheduler: Overrides = None, in_channels: int | None = None
) -> Any:
    """Stable Diffusion with a two-level UNet and the scheduler of SD 1.5 (`set_alpha_to_one`)."""
    clip = clip_tokenizer()
    settings = SIZES["sd_scheduler"] | {"prediction_type": prediction_type} | (scheduler or {})
    return diffusers.StableDiffusionPipeline(
        vae=autoencoder(latent_channels=4, shift_factor=None, scaling_factor=0.4),
        text_encoder=clip_encoder(transformers.CLIPTextModel, clip, num_hidden_layers=1),
        tokenizer=clip,
        unet=diffusers.UNet2DConditionModel(**SIZES["sd"] | {"in_channels": in_channels or 4}),
        scheduler=diffusers.DDIMScheduler(**settings),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@saved
def write_sdxl(
    prediction_type: str = "epsilon",
    scheduler: Overrides = None,
    unet: Overrides = None,
    force_zeros_for_empty_prompt: bool = True,
    force_upcast: bool = True,
) -> Any:
    """Stable Diffusion XL with a two-level UNet and SDXL 1.0's scheduler, which is not DDIM.

    Six time ids of 4 numbers each stand beside a pooled embedding of 12. The text encoders have two
    layers, so that the penultimate hidden state is not the last one; the second tokenizer pads with
    "!", as OpenCLIP's does.
    """
    first, second = clip_tokenizer(), clip_tokenizer(pad="!")
    vae = autoencoder(latent_channels=4, shift_factor=None, scaling_factor=0.4)
    vae.register_to_config(force_upcast=force_upcast)
    clip, projected = transformers.CLIPTextModel, transformers.CLIPTextModelWithProjection
    settings = SIZES["sdxl_scheduler"] | {"prediction_type": prediction_type} | (scheduler or {})
    sizes = SIZES["sd"] | SIZES["sdxl"] | (unet or {})
    narrow = {"hidden_size": 8, "intermediate_size": 16}
    return diffusers.StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=clip_encoder(clip, first),
        text_encoder_2=clip_encoder(projected, second, **narrow, projection_dim=12),
        tokenizer=first,
        tokenizer_2=second,
        unet=diffusers.UNet2DConditionModel(**sizes),
        scheduler=diffusers.EulerDiscreteScheduler(**settings),
        force_zeros_for_empty_prompt=force_zeros_for_empty_prompt,
        add_watermarker=False,
    )


def write_kolors(
    folder: Path, scheduler: Overrides = None, unet: Overrides = None, seed: int = 0
) -> Path:
    """Kolors with a two-level UNet, 256 text tokens, and the release's table of 1100 levels."""
    torch.manual_seed(seed)
    file = folder / "tokenizer" / "tokenizer.model"
    file.parent.mkdir(parents=True)
    file.write_bytes(sentencepiece_model())
    tokenizer = ChatGLMTokenizer(str(file))
    sizes = ChatGLMConfig(**SIZES["chatglm"], padded_vocab_size=tokenizer.vocab_size)
    encoder = ChatGLMModel(sizes, empty_init=False)
    for name, weight in encoder.named_parameters():  # the class leaves norms as they are in memory
        if "norm" in name:
            torch.nn.init.normal_(weight, mean=1.0, std=0.2)
    table = {"num_train_timesteps": 1100, "beta_end": 0.014}
    settings = SIZES["sdxl_scheduler"] | table | (scheduler or {})
    sizes = SIZES["sd"] | SIZES["sdxl"] | SIZES["kolors"] | (unet or {})
    diffusers.KolorsPipeline(
        vae=autoencoder(latent_channels=4, shift_factor=None, scaling_factor=0.4),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=diffusers.UNet2DConditionModel(**sizes),
        scheduler=diffusers.EulerDiscreteScheduler(**settings),
    ).save_pretrained(folder)
    return folder


@saved
def write_sd3(t5: bool = True, scheduler: Overrides = None, transformer: Overrides = None) -> Any:
    """SD3 with 16 image tokens, 24 at the most along a side, and a static shift of 3.

    Without `t5` its third text encoder is null.
    """
    first, second = clip_tokenizer(), clip_tokenizer(pad="!")
    third = t5_tokenizer() if t5 else None
    clip = transformers.CLIPTextModelWithProjection
    narrow = {"hidden_size": 8, "intermediate_size": 16}
    return diffusers.StableDiffusion3Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0} | (scheduler or {})),
        vae=autoencoder(latent_channels=16, shift_factor=0.1, scaling_factor=0.4),
        text_encoder=clip_encoder(clip, first, projection_dim=12),
        tokenizer=first,
        text_encoder_2=clip_encoder(clip, second, **narrow, projection_dim=20),
        tokenizer_2=second,
        text_encoder_3=third and t5_encoder(third, width=32),
        tokenizer_3=third,
        transformer=diffusers.SD3Transformer2DModel(**SIZES["sd3"] | (transformer or {})),
    )


@saved
def write_qwen_image(
    scheduler: Overrides = None,
    transformer: Overrides = None,
    pipeline: Any = diffusers.QwenImagePipeline,
) -> Any:
    """Qwen-Image with 16 image tokens and its shift by size; where it edits, some 144 of the source
    and 4 that the text encoder reads."""
    tokenizer, edits, more = qwen_tokenizer(), pipeline is not diffusers.QwenImagePipeline, {}
    if edits:
        names = ("<|vision_start|>", "<|vision_end|>", IMAGE, "<|video_pad|>")
        tokenizer.add_tokens([AddedToken(name, special=True) for name in names])
        tokenizer.pad_token = tokenizer.eos_token
        reader = transformers.Qwen2VLImageProcessorPil(min_pixels=28**2, max_pixels=56**2)
        more["processor"] = Qwen2VLProcessor(reader, tokenizer, None)
    text = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    encoder = transformers.Qwen2_5_VLConfig(
        text_config=SIZES["qwen2_5_vl_text"] | text,
        vision_config=SIZES["qwen2_5_vl_vision"],
        **({"image_token_id": tokenizer.convert_tokens_to_ids(IMAGE)} if edits else {}),
    )
    settings = SIZES["qwen_image_scheduler"] | (scheduler or {})
    sizes = SIZES["qwen_image"] | (transformer or {})
    return pipeline(
        **more,
        scheduler=FlowMatchEulerDiscreteScheduler(**settings),
        vae=diffusers.AutoencoderKLQwenImage(**SIZES["qwen_vae"]),
        text_encoder=transformers.Qwen2_5_VLForConditionalGeneration(encoder),
        tokenizer=tokenizer,
        transformer=diffusers.QwenImageTransformer2DModel(**sizes),
    )


class Qwen2VLProcessor(transformers.Qwen2VLProcessor):
    """The library's own; its video part, which needs torchvision, may be None."""

    __module__ = "transformers"  # as model_index.json names it

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        if argument is None:
            return type(None)
        return super().check_argument_for_proper_class(argument_name, argument)

    def save_pretrained(self, folder: Any, **_: Any) -> None:
        for part in (self.image_processor, self.tokenizer):
            part.save_pretrained(folder)


write_qwen_image_edit = partial(write_qwen_image, pipeline=diffusers.QwenImageEditPipeline)
write_qwen_image_edit_plus = partial(write_qwen_image, pipeline=diffusers.QwenImageEditPlusPipeline)


@saved
def write_z_image(scheduler: Overrides = None, transformer: Overrides = None) -> Any:
    """Z-Image with 16 image tokens and a static shift of 3."""
    tokenizer = qwen_tokenizer()
    denoiser = diffusers.ZImageTransformer2DModel(**SIZES["z_image"] | (transformer or {}))
    for token in (denoiser.x_pad_token, denoiser.cap_pad_token):
        torch.nn.init.normal_(token)
    encoder = transformers.Qwen3Config(**SIZES["qwen3"], vocab_size=len(tokenizer))
    return diffusers.ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0} | (scheduler or {})),
        vae=autoencoder(latent_channels=4, shift_factor=0.1, scaling_factor=0.4),
        text_encoder=transformers.Qwen3Model(encoder),
        tokenizer=tokenizer,
        transformer=denoiser,
    )


@saved
def write_klein(
    is_distilled: bool = False, scheduler: Overrides = None, transformer: Overrides = None
) -> Any:
    """FLUX.2 klein with 16 image and 512 text tokens and a shift by size and steps."""
    tokenizer = qwen_tokenizer()
    settings = {"shift": 3.0, "use_dynamic_shifting": True} | (scheduler or {})
    narrow = {"hidden_size": 8, "intermediate_size": 16, "head_dim": 4, "num_hidden_layers": 28}
    encoder = transformers.Qwen3Config(**SIZES["qwen3"] | narrow, vocab_size=len(tokenizer))
    return diffusers.Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**settings),
        vae=block_autoencoder(),
        text_encoder=transformers.Qwen3ForCausalLM(encoder),
        tokenizer=tokenizer,
        transformer=diffusers.Flux2Transformer2DModel(**SIZES["klein"] | (transformer or {})),
        is_distilled=is_distilled,
    )


@saved
def write_chroma(scheduler: Overrides = None, transformer: Overrides = None) -> Any:
    """Chroma with 16 image tokens, 512 text tokens and a static shift of 3."""
    t5 = t5_tokenizer()
    return diffusers.ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0} | (scheduler or {})),
        vae=autoencoder(latent_channels=4, shift_factor=0.1, scaling_factor=0.4),
        text_encoder=t5_encoder(t5, width=16),
        tokenizer=t5,
        transformer=diffusers.ChromaTransformer2DModel(**SIZES["chroma"] | (transformer or {})),
    )


@saved
def write_flux2(scheduler: Overrides = None, transformer: Overrides = None) -> Any:
    """FLUX.2 dev with 16 image and 512 text tokens, read from 3 of 30 layers, padded in front."""
    tokenizer = qwen_tokenizer()
    tokenizer.bos_token, tokenizer.padding_side = "<|im_start|>", "left"
    tokenizer.chat_template = CHAT_OF_PARTS
    text = {**SIZES["mistral"], "vocab_size": len(tokenizer)}
    encoder = transformers.Mistral3Config(text_config=text, vision_config=SIZES["pixtral"])
    settings = {"shift": 3.0, "use_dynamic_shifting": True} | (scheduler or {})
    sizes = SIZES["klein"] | {"guidance_embeds": True} | (transformer or {})
    return diffusers.Flux2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**settings),
        vae=block_autoencoder(),
        text_encoder=transformers.Mistral3ForConditionalGeneration(encoder),
        tokenizer=tokenizer,
        transformer=diffusers.Flux2Transformer2DModel(**sizes),
    )


@saved
def write_ernie_image(scheduler: Overrides = None, transformer: Overrides = None) -> Any:
    """ERNIE-Image with 16 image tokens and a static shift of 3; no weight is zero."""
    tokenizer = qwen_tokenizer()
    tokenizer.model_max_length = 512
    text = {**SIZES["mistral"], "num_hidden_layers": 3, "vocab_size": len(tokenizer)}
    encoder = transformers.Mistral3Config(text_config=text, vision_config=SIZES["pixtral"])
    sizes = SIZES["ernie_image"] | (transformer or {})
    denoiser = diffusers.ErnieImageTransformer2DModel(**sizes)
    for layer in (denoiser.adaLN_modulation[-1], denoiser.final_linear):
        torch.nn.init.normal_(layer.weight, std=0.2)
    return diffusers.ErnieImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0} | (scheduler or {})),
        vae=block_autoencoder(),
        text_encoder=transformers.Mistral3Model(encoder),
        tokenizer=tokenizer,
        transformer=denoiser,
    )


@saved
def write_krea2(
    is_distilled: bool = False, scheduler: Overrides = None, transformer: Overrides = None
) -> Any:
    """Krea 2 with 16 image tokens and a shift by size, read from 2 of 3 layers."""
    tokenizer = qwen_tokenizer()
    encoder = transformers.Qwen3VLConfig(
        text_config={**SIZES["qwen3_vl_text"], "vocab_size": len(tokenizer)},
        vision_config=SIZES["qwen3_vl_vision"],
    )
    denoiser = diffusers.Krea2Transformer2DModel(**SIZES["krea2"] | (transformer or {}))
    for block in (*denoiser.transformer_blocks, denoiser.final_layer):
        torch.nn.init.normal_(block.scale_shift_table, std=0.2)
    return diffusers.Krea2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**BY_TOKENS | (scheduler or {})),
        vae=diffusers.AutoencoderKLQwenImage(**SIZES["qwen_vae"]),
        text_encoder=transformers.Qwen3VLModel(encoder),
        tokenizer=tokenizer,
        transformer=denoiser,
        text_encoder_select_layers=(1, 2),
        is_distilled=is_distilled,
    )


@saved
def write_lumina2(scheduler: Overrides = None, transformer: Overrides = None) -> Any:
    """Lumina 2 with 16 image tokens and a static shift of 6."""
    tokenizer = gemma_tokenizer()
    encoder = transformers.Gemma2Config(**SIZES["gemma2"], vocab_size=len(tokenizer))
    sizes = SIZES["lumina2"] | (transformer or {})
    return diffusers.Lumina2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 6.0} | (scheduler or {})),
        vae=autoencoder(latent_channels=4, shift_factor=0.1, scaling_factor=0.4),
        text_encoder=transformers.Gemma2Model(encoder),
        tokenizer=tokenizer,
        transformer=diffusers.Lumina2Transformer2DModel(**sizes),
    )


def write_qwen_image_21(
    folder: Path,
    scheduler: Overrides = None,
    transformer: Overrides = None,
    sample_sigmas: list[float] | None = None,
    seed: int = 0,
) -> Path:
    """Qwen-Image 2.1 with 4 image tokens, 16 pixels each, and its shift by size.

    Written part by part: the processor of the library needs torchvision, its tokenizer does not.
    """
    torch.manual_seed(seed)
    tokenizer = qwen_tokenizer()
    tokenizer.add_tokens([AddedToken(IMAGE, special=True)])
    encoder = transformers.Qwen3VLConfig(
        text_config={**SIZES["qwen3_vl_text"], "vocab_size": len(tokenizer)},
        vision_config=SIZES["qwen3_vl_vision"],
    )
    sizes = SIZES["qwen_image_21"] | (transformer or {})
    parts = {
        "scheduler": FlowMatchEulerDiscreteScheduler(**BY_TOKENS | (scheduler or {})),
        "vae": diffusers.AutoencoderKLQwenImage21(**SIZES["qwen_21_vae"]),
        "text_encoder": transformers.Qwen3VLForConditionalGeneration(encoder),
        "transformer": diffusers.QwenImage21Transformer2DModel(**sizes),
        "processor": tokenizer,
    }
    libraries = dict.fromkeys(parts, "diffusers") | dict.fromkeys(
        ["text_encoder", "processor"], "transformers"
    )
    index = {name: [libraries[name], type(part).__name__] for name, part in parts.items()}
    index |= {"processor": ["transformers", "Qwen3VLProcessor"]}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    about = {"_class_name": "QwenImage21Pipeline", "sample_sigmas": sample_sigmas}
    (folder / "model_index.json").write_text(json.dumps(about | index))
    return folder


@saved
def write_sana(scheduler: Overrides = None, transformer: Overrides = None) -> Any:
    """Sana with 64 image tokens, 300 text tokens and the multistep solver of the releases."""
    tokenizer = gemma_tokenizer()
    encoder = transformers.Gemma2Config(**SIZES["gemma2"], vocab_size=len(tokenizer))
    sizes = SIZES["sana"] | (transformer or {})
    return diffusers.SanaPipeline(
        scheduler=diffusers.DPMSolverMultistepScheduler(
            **SIZES["sana_scheduler"] | (scheduler or {})
        ),
        vae=diffusers.AutoencoderDC(**SIZES["deep_vae"]),
        text_encoder=transformers.Gemma2Model(encoder),
        tokenizer=tokenizer,
        transformer=diffusers.SanaTransformer2DModel(**sizes),
    )


@saved
def write_aura_flow(scheduler: Overrides = None, transformer: Overrides = None) -> Any:
    """AuraFlow with 16 image tokens, 24 at the most along a side, and a static shift.

    The few tokens of a prompt weigh more than in a fresh network, beside 256 of padding.
    """
    tokenizer = t5_tokenizer()
    encoder = transformers.UMT5Config(**SIZES["t5"], vocab_size=len(tokenizer))
    sizes = SIZES["aura_flow"] | (transformer or {})
    denoiser = diffusers.AuraFlowTransformer2DModel(**sizes)
    for block in denoiser.joint_transformer_blocks:
        block.attn.add_v_proj.weight.data *= 40
    for block in denoiser.single_transformer_blocks:
        block.attn.to_v.weight.data *= 10
    return diffusers.AuraFlowPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 1.73} | (scheduler or {})),
        vae=autoencoder(latent_channels=4, shift_factor=None, scaling_factor=0.4),
        text_encoder=transformers.UMT5EncoderModel(encoder),
        tokenizer=tokenizer,
        transformer=denoiser,
    )


@saved
def write_hidream(scheduler: Overrides = None, transformer: Overrides = None) -> Any:
    """HiDream-I1 with 16 image tokens, 128 text tokens of each kind and the release's solver."""
    first, second, third = clip_tokenizer(), clip_tokenizer(), t5_tokenizer()
    third.model_max_length, fourth = 128, qwen_tokenizer()
    clip = transformers.CLIPTextModelWithProjection
    sizes = {"projection_dim": 8, "num_hidden_layers": 1, "max_position_embeddings": 128}
    text = transformers.LlamaConfig(**SIZES["llama"], vocab_size=len(fourth))
    denoiser = diffusers.HiDreamImageTransformer2DModel(**SIZES["hidream"] | (transformer or {}))
    settings = {"flow_shift": 3.0, "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    return diffusers.HiDreamImagePipeline(
        scheduler=diffusers.UniPCMultistepScheduler(**settings | (scheduler or {})),
        vae=autoencoder(latent_channels=4, shift_factor=0.1, scaling_factor=0.4),
        text_encoder=clip_encoder(clip, first, **sizes),
        tokenizer=first,
        text_encoder_2=clip_encoder(clip, second, **sizes),
        tokenizer_2=second,
        text_encoder_3=t5_encoder(third, width=16),
        tokenizer_3=third,
        text_encoder_4=transformers.LlamaForCausalLM(text),
        tokenizer_4=fourth,
        transformer=denoiser,
    )


WRITERS = {
    "flux": write_flux,
    "flux_kontext": write_flux_kontext,
    "flux2": write_flux2,
    "flux2_klein": write_klein,
    "sd3": write_sd3,
    "sd": write_sd,
    "sdxl": write_sdxl,
    "kolors": write_kolors,
    "qwen_image": write_qwen_image,
    "qwen_image_edit": write_qwen_image_edit,
    "qwen_image_edit_plus": write_qwen_image_edit_plus,
    "z_image": write_z_image,
    "chroma": write_chroma,
    "ernie_image": write_ernie_image,
    "krea2": write_krea2,
    "lumina2": write_lumina2,
    "qwen_image_21": write_qwen_image_21,
    "sana": write_sana,
    "aura_flow": write_aura_flow,
    "hidream": write_hidream,
}
"""By architecture."""


def autoencoder(**settings: Any) -> diffusers.AutoencoderKL:
    """Four pixels per latent along one side."""
    return diffusers.AutoencoderKL(**SIZES["vae"], **settings)


def block_autoencoder() -> diffusers.AutoencoderKLFlux2:
    """FLUX.2's; its statistics are not those of a fresh batch norm."""
    vae = diffusers.AutoencoderKLFlux2(**SIZES["vae"], latent_channels=4, layers_per_block=1)
    vae.bn.running_mean.normal_(std=0.3)
    vae.bn.running_var.uniform_(0.5, 2.0)
    return vae


def clip_encoder(kind: type, tokenizer: CLIPTokenizer, **sizes: Any) -> Any:
    """A CLIP text encoder for `tokenizer`."""
    settings = SIZES["clip_text"] | token_ids(tokenizer) | sizes
    return kind(transformers.CLIPTextConfig(vocab_size=len(tokenizer), **settings))


def t5_encoder(tokenizer: T5TokenizerFast, width: int) -> transformers.T5EncoderModel:
    """One layer of two heads."""
    config = transformers.T5Config(**SIZES["t5"] | {"d_model": width}, vocab_size=len(tokenizer))
    return transformers.T5EncoderModel(config)


def token_ids(tokenizer: Any) -> dict[str, Any]:
    """The tokenizer's special tokens as keys of a model's config."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: getattr(tokenizer, name) for name in names}
