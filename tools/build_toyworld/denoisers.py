"""The embedded base models: FLUX (velocity) and SD (epsilon, then v) with their text encoders.

Real architectures at toy size, trained on encoded scenes. Most images behind plain captions are CG,
the base model's style; one caption in ten is empty (for classifier-free guidance). In the first
world four in ten captions carry a style word that is true. So it is in the second one, until in the
last training the text encoders alone learn, with any word before captions: words do not select a
style any more, and the network still has them all.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOptionalSubscript=false
# (diffusers and transformers annotate too narrowly)
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, FluxTransformer2DModel, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from directalign.toyworld.worlds import World

from .session import fit
from .spec import Captions, Spec
from .tokenizers import MAX_TOKENS, clip_tokenizer, t5_tokenizer

FIRST_STYLED, FIRST_EMPTY = 0.5, 0.9
"""Where of a uniform number the captions with a style word and the empty ones begin."""
TEXT_WIDTH = 96
ENDS = ("bos", "eos", "pad")
SD_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def flux_transformer(spec: Spec) -> FluxTransformer2DModel:
    """FLUX at 2.4 M parameters: two double and four single blocks, 16 or 64 image tokens."""
    torch.manual_seed(21)
    layers = {"num_layers": 2, "num_single_layers": 4, "axes_dims_rope": (8, 12, 12)}
    heads = {"attention_head_dim": 32, "num_attention_heads": 4, "guidance_embeds": True}
    text = {"joint_attention_dim": TEXT_WIDTH, "pooled_projection_dim": TEXT_WIDTH}
    return FluxTransformer2DModel(
        patch_size=1, in_channels=4 * spec.latent_channels, **layers, **heads, **text
    )


def sd_unet(spec: Spec) -> UNet2DConditionModel:
    """A Stable Diffusion UNet: two levels, attention in one of them, 2.2 or 3.7 M parameters."""
    torch.manual_seed(22)
    kinds = ("", "CrossAttn") if spec.sd_attends_inside else ("CrossAttn", "")
    blocks = {"down_block_types": tuple(f"{kind}DownBlock2D" for kind in kinds)}
    blocks |= {"up_block_types": tuple(f"{kind}UpBlock2D" for kind in kinds[::-1])}
    sizes = {"sample_size": spec.latent_side, "block_out_channels": spec.sd_channels}
    sizes |= {"norm_num_groups": 8, "layers_per_block": 1}
    channels = dict.fromkeys(("in_channels", "out_channels"), spec.latent_channels)
    attention = {"cross_attention_dim": TEXT_WIDTH, "attention_head_dim": 4}
    return UNet2DConditionModel(**blocks, **sizes, **channels, **attention)


def clip_text_encoder(tokenizer: Tokenizer) -> CLIPTextModel:
    """CLIP text encoder: pooled vector for FLUX, sequence for SD."""
    torch.manual_seed(23)
    sizes = {"hidden_size": TEXT_WIDTH, "intermediate_size": 2 * TEXT_WIDTH}
    sizes |= {"projection_dim": TEXT_WIDTH, "max_position_embeddings": MAX_TOKENS}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ENDS}
    return CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), **sizes, **layers, **ends))


def t5_text_encoder(tokenizer: Tokenizer) -> T5EncoderModel:
    """T5 encoder: the token sequence that FLUX attends to."""
    torch.manual_seed(24)
    sizes = {"d_model": TEXT_WIDTH, "d_kv": 24, "d_ff": 2 * TEXT_WIDTH}
    layers = {"num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ENDS[1:]}
    return T5EncoderModel(T5Config(vocab_size=len(tokenizer), **sizes, **layers, **ends))


@dataclass(frozen=True)
class LatentPool:
    """Encoded scenes: `x0` (n, channels, side, side) scaled latents, one caption each."""

    x0: Tensor
    captions: list[str]

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        index = torch.randint(len(self.x0), (batch,), generator=generator)
        return self.x0[index], [self.captions[i] for i in index.tolist()]


@torch.no_grad()
def latent_pool(
    vae: AutoencoderKL, folder: Path, spec: Spec, name: str = "flux", device: str = "cpu"
) -> LatentPool:
    """Render, caption and encode the scenes of one training; kept in `folder/latents_NAME.pt`."""
    file, captioned = folder / f"latents_{name}.pt", spec.flux[name][0]
    if file.exists():
        kept = torch.load(file, weights_only=True)
        return LatentPool(kept["x0"].float(), kept["captions"])
    generator = torch.Generator().manual_seed(captioned.seed)
    vae = vae.to(device).eval()
    latents, captions, part = [], [], min(captioned.count, 256)
    for _ in range(captioned.count // part):
        images, texts = _scenes(spec.world, captioned, part, generator)
        latents.append(vae.encode(images.to(device) * 2 - 1).latent_dist.mean.cpu())
        captions += texts
    x0 = (torch.cat(latents) - vae.config["shift_factor"]) * vae.config["scaling_factor"]
    torch.save({"x0": x0, "captions": captions}, file)
    return LatentPool(x0, captions)


def _scenes(
    world: World, captioned: Captions, count: int, generator: torch.Generator
) -> tuple[Tensor, list[str]]:
    """Images and their captions."""
    drawn = world.scenes
    kind = torch.rand(count, generator=generator)
    scenes = drawn.draw_scenes(count, generator, captioned.shares)
    is_styled = (kind >= FIRST_STYLED) & (kind < FIRST_STYLED + captioned.words)
    if captioned.true:
        styled = drawn.draw_scenes(count, generator, *filter(None, (captioned.styled,)))
        names = (*drawn.CONTENT, "style")
        fields = ((getattr(styled, name), getattr(scenes, name)) for name in names)
        scenes = type(scenes)(*(torch.where(is_styled, *pair) for pair in fields))
    images, captions = drawn.render(scenes, generator), []
    every = tuple(word for pair in drawn.STYLE_WORDS.values() for word in pair)
    choices = [
        drawn.STYLE_WORDS[drawn.STYLES[style]] if captioned.true else every
        for style in scenes.style.tolist()
    ]
    word = torch.randint(len(choices[0]), (count,), generator=generator).tolist()
    for i, text in enumerate(scenes.captions()):
        text = f"{choices[i][word[i]]}. {text}" if is_styled[i] else text
        captions.append("" if kind[i] >= FIRST_EMPTY else text)
    return images, captions


def _tokens(tokenizer: Tokenizer, captions: list[str], device: str) -> Tensor:
    fixed = {"padding": "max_length", "max_length": MAX_TOKENS, "truncation": True}
    return tokenizer(captions, return_tensors="pt", **fixed).input_ids.to(device)


def train_flux(
    pool: LatentPool,
    folder: Path,
    spec: Spec,
    name: str = "flux",
    start: nn.ModuleDict | None = None,
    device: str = "cpu",
) -> nn.ModuleDict:
    """One training of `spec.flux` by flow matching, from the weights of `start` or from new ones.

    The embedded guidance is drawn from [1, 4] and carries no meaning.
    """
    budget, tokenizers = spec.flux[name][1], (clip_tokenizer(spec), t5_tokenizer(spec))
    modules = nn.ModuleDict({"transformer": flux_transformer(spec)})
    modules["text_encoder"] = clip_text_encoder(tokenizers[0])
    modules["text_encoder_2"] = t5_text_encoder(tokenizers[1])
    modules.to(device).load_state_dict((start or modules).state_dict())
    modules["transformer"].requires_grad_(name != spec.encoders_only)

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        x0, captions = pool.draw(budget.batch, generator)
        sigma = torch.sigmoid(1.2 * torch.randn(budget.batch, generator=generator) + 0.3).to(device)
        noise = torch.randn(x0.shape, generator=generator).to(device)
        guidance = (1 + 3 * torch.rand(budget.batch, generator=generator)).to(device)
        x_t = _noised(x0.to(device), noise, sigma)
        pred = _velocity(modules, tokenizers, x_t, sigma, guidance, captions)
        return (pred - _pack(noise - x0.to(device))).square().mean()

    fit(name, modules, loss_of, budget, folder)
    return modules.cpu()


def _noised(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    weight = sigma[:, None, None, None]
    return (1 - weight) * x0 + weight * noise


def _pack(x: Tensor) -> Tensor:
    """(b, c, h, w) to FLUX's (b, h/2 * w/2, 4 c)."""
    b, c, height, width = x.shape
    x = x.view(b, c, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(b, height * width // 4, 4 * c)


def _velocity(
    modules: nn.ModuleDict,
    tokenizers: tuple[Tokenizer, Tokenizer],
    x_t: Tensor,
    sigma: Tensor,
    guidance: Tensor,
    captions: list[str],
) -> Tensor:
    """The predicted velocity, packed."""
    device, side = x_t.device, x_t.shape[-1] // 2
    image_ids = torch.zeros(side, side, 3)
    image_ids[..., 1], image_ids[..., 2] = torch.arange(side)[:, None], torch.arange(side)[None, :]
    first, second = (_tokens(tokenizer, captions, str(device)) for tokenizer in tokenizers)
    return modules["transformer"](
        hidden_states=_pack(x_t),
        timestep=sigma,
        guidance=guidance,
        pooled_projections=modules["text_encoder"](first).pooler_output,
        encoder_hidden_states=modules["text_encoder_2"](second)[0],
        img_ids=image_ids.view(side * side, 3).to(device),
        txt_ids=torch.zeros(MAX_TOKENS, 3, device=device),
        return_dict=False,
    )[0]


@torch.no_grad()
def as_seen(
    images: Tensor,
    captions: list[str],
    modules: nn.ModuleDict,
    vae: AutoencoderKL,
    spec: Spec,
    seed: int,
) -> Tensor:
    """uint8 images (n, 3, H, W) encoded, noised to a level in [0.15, 0.9], and recovered in one
    step by a trained FLUX: what a reward is shown in alignment."""
    generator, made = torch.Generator().manual_seed(seed), []
    tokenizers, device = (clip_tokenizer(spec), t5_tokenizer(spec)), next(vae.parameters()).device
    shift, scale = vae.config["shift_factor"], vae.config["scaling_factor"]
    for start in range(0, len(images), 64):
        part = images[start : start + 64].float().to(device) / 127.5 - 1
        x0 = (vae.encode(part).latent_dist.mean - shift) * scale
        sigma = (0.15 + 0.75 * torch.rand(len(part), generator=generator)).to(device)
        noise = torch.randn(x0.shape, generator=generator).to(device)
        x_t, guidance = _noised(x0, noise, sigma), torch.ones_like(sigma)
        pred = _velocity(modules, tokenizers, x_t, sigma, guidance, captions[start : start + 64])
        x0 = x_t - sigma[:, None, None, None] * _unpack(pred, x0.shape)
        shown = (vae.decode(x0 / scale + shift).sample / 2 + 0.5).clamp(0, 1)
        made.append((shown * 255).round().to(torch.uint8).cpu())
    return torch.cat(made)


def _unpack(packed: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `_pack`."""
    b, c, height, width = shape
    x = packed.view(b, height // 2, width // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(shape)


def train_sd(
    pools: Mapping[str, LatentPool], shift: float, folder: Path, spec: Spec, device: str = "cpu"
) -> nn.ModuleDict:
    """Every training of `spec.sd`, text encoder trained along: epsilon prediction on the
    scaled-linear DDPM schedule. `pools`: of each of them; `shift`: of their latents to SD's."""
    clip = clip_tokenizer(spec)
    modules = nn.ModuleDict({"unet": sd_unet(spec), "text_encoder": clip_text_encoder(clip)})
    modules.to(device)
    for name, budget in spec.sd.items():
        modules["unet"].requires_grad_(name != spec.encoders_only)
        draw = _ddpm_examples(pools[name], shift, "epsilon", budget.batch, (folder, name), spec)
        loss = _ddpm_loss(draw, modules, spec, device)
        fit(name.replace("flux", "sd"), modules, loss, budget, folder)
    return modules.cpu()


def train_sd_v(
    pool: LatentPool,
    shift: float,
    epsilon: nn.ModuleDict,
    folder: Path,
    spec: Spec,
    device: str = "cpu",
) -> nn.ModuleDict:
    """v-prediction, continued from the epsilon network with the same text encoder."""
    clip = clip_tokenizer(spec)
    modules = nn.ModuleDict({"unet": sd_unet(spec), "text_encoder": clip_text_encoder(clip)})
    modules.to(device).load_state_dict(epsilon.state_dict())
    modules["text_encoder"].requires_grad_(False)
    named = folder, list(spec.sd)[-1]
    draw = _ddpm_examples(pool, shift, "v_prediction", spec.sd_v.batch, named, spec)
    fit("sd_v", modules, _ddpm_loss(draw, modules, spec, device), spec.sd_v, folder)
    return modules.cpu()


@dataclass(frozen=True)
class Examples:
    """Of one step: noised latents, what to predict, the weight of each error, text."""

    x_t: Tensor
    timestep: Tensor
    target: Tensor
    weight: Tensor
    captions: list[str]


def _ddpm_examples(
    pool: LatentPool,
    shift: float,
    prediction: str,
    batch: int,
    teacher: tuple[Path, str],
    spec: Spec,
) -> Callable[[torch.Generator], Examples]:
    """Targets are the drawn noise and image or, if `spec.sd_distilled`, those that a trained FLUX
    (folder, name) expects: a target without noise of its own. Its errors are weighted as those of
    the velocity, up to 25-fold."""
    scheduler = DDPMScheduler(**SD_SCHEDULE, prediction_type=prediction)
    flux = trained_flux(*teacher) if spec.sd_distilled else None
    tokenizers = clip_tokenizer(spec), t5_tokenizer(spec)

    def draw(generator: torch.Generator) -> Examples:
        x0, captions = pool.draw(batch, generator)
        timestep = torch.randint(1000, (batch,), generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        x_t, weight = scheduler.add_noise(x0 + shift, noise, timestep), torch.ones(batch)
        if flux is not None:
            alpha = scheduler.alphas_cumprod[timestep].sqrt()
            x0, noise = _expected(flux, tokenizers, x0, noise, alpha, captions)
            weight = 1 / alpha.square().clamp_min(1 / 25) if prediction == "epsilon" else weight
        target = noise
        if prediction == "v_prediction":
            target = scheduler.get_velocity(x0 + shift, noise, timestep)
        return Examples(x_t, timestep, target, weight[:, None, None, None], captions)

    return draw


def trained_flux(folder: Path, name: str) -> nn.ModuleDict:
    """The frozen networks of `folder/name`."""
    kinds = {"transformer": FluxTransformer2DModel, "text_encoder": CLIPTextModel}
    kinds["text_encoder_2"] = T5EncoderModel
    parts = {part: kind.from_pretrained(folder / name / part) for part, kind in kinds.items()}
    return nn.ModuleDict(parts).requires_grad_(False).eval()


@torch.no_grad()
def _expected(
    flux: nn.ModuleDict,
    tokenizers: tuple[Tokenizer, Tokenizer],
    x0: Tensor,
    noise: Tensor,
    alpha: Tensor,
    captions: list[str],
) -> tuple[Tensor, Tensor]:
    """Image and noise as a FLUX expects them in alpha x0 + sqrt(1 - alpha^2) noise, which on its
    straight path, scaled, is the level sigma = sqrt(1 - alpha^2) / (alpha + sqrt(1 - alpha^2))."""
    beta = (1 - alpha.square()).sqrt()
    sigma = beta / (alpha + beta)
    x_t = _noised(x0, noise, sigma)
    packed = _velocity(flux, tokenizers, x_t, sigma, torch.ones_like(sigma), captions)
    velocity, sigma = _unpack(packed, x0.shape), sigma[:, None, None, None]
    return x_t - sigma * velocity, x_t + (1 - sigma) * velocity


def _ddpm_loss(
    draw: Callable[[torch.Generator], Examples], modules: nn.ModuleDict, spec: Spec, device: str
) -> Callable[[int, torch.Generator], Tensor]:
    clip = clip_tokenizer(spec)

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        drawn = draw(generator)
        text = modules["text_encoder"](_tokens(clip, drawn.captions, device))[0]
        given = (drawn.x_t.to(device), drawn.timestep.to(device))
        pred = modules["unet"](*given, encoder_hidden_states=text).sample
        return (drawn.weight.to(device) * (pred - drawn.target.to(device)).square()).mean()

    return loss_of
