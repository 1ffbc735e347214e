"""The way from clean latents to a number, traced: VAE decoder, then every reward that one loss asks, and back.

What a reward keeps is there until the backward pass of all; where a mixture balances gradients each goes back before the next is asked.
Texts are taken to be of one usual length; what a CLIP or a SigLIP keeps of them is too little to count. Vision-language models are
traced apart, see `reading`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pixel_shuffle

from ..models import vae as autoencoder
from ..models import vae as frame_autoencoder
from ..rewards import image_reward, qwen_vl
from ..rewards.common import recompute
from ..rewards.qwen_vl import ChatBatch
from ..types import Images, Latents
from .blocks import FEWEST
from .judges import Judge
from .live import Piece, measured
from .weightless import Part, built, in_shapes_alone, quietly, residents

CLIP_TEXT = 77
"""Tokens that MPS reads."""
READERS = ("vlm", "hpsv3")
"""Kinds with a language model."""


@dataclass(frozen=True)
class Judged:
    """VAE decoder in `dtype`, then `judges` of images of `size` (none: a plain mean); `one_by_one` their gradients are taken at the image."""

    vae: Part
    dtype: torch.dtype
    recompute: bool
    judges: tuple[Judge, ...] = ()
    one_by_one: bool = False
    size: tuple[int, int] = (0, 0)


def judging(of: Judged, latents: tuple[int, int, int, int], with_gradient: bool) -> Piece:
    """Decode latents (b, c, h, w), clamp, prepare, encode the images; with gradient back to the latents."""
    readers = tuple(judge for judge in of.judges if judge.kind in READERS)
    whole = _judging(
        replace(of, judges=tuple(judge for judge in of.judges if judge not in readers)),
        latents,
        with_gradient,
    )
    for judge in readers:
        read = reading(judge, latents[0], of.size, with_gradient)
        last = whole.kept + (read.backward if with_gradient else 0)
        kept = whole.kept if of.one_by_one else whole.kept + read.kept
        whole = Piece(
            max(whole.forward, whole.kept + read.forward, last if of.one_by_one else 0),
            kept,
            max(whole.backward, last),
        )
    return whole


@cache
@quietly()
def _judging(of: Judged, latents: tuple[int, int, int, int], with_gradient: bool) -> Piece:
    vae, networks = _vae(of), [_prepared(judge) for judge in of.judges]
    network = nn.ModuleList([vae, *networks])
    with in_shapes_alone(network):
        x0 = torch.empty(latents, requires_grad=with_gradient)

    def call() -> Tensor:
        images = decoded(vae, x0, of.recompute).clamp(0, 1)
        asked = [partial(score, judge, own) for judge, own in zip(of.judges, networks, strict=True)]
        if not asked:
            return images.mean()
        return (
            _balanced(images, asked)
            if of.one_by_one and with_gradient
            else torch.stack([ask(images) for ask in asked]).sum()
        )

    with torch.set_grad_enabled(with_gradient):
        return measured(call, residents(network))


def reading(judge: Judge, b: int, size: tuple[int, int], with_gradient: bool) -> Piece:
    """A vision-language model on `b` images, by networks of two and three of its layers of each kind.

    What is kept grows by as much with each further layer. On top of that comes at most what two layers take beyond what they keep,
    which is a little much where that moment is not that of the most kept. Attention over windows is traced as over the whole image,
    which keeps the same; deeper image tokens (Qwen3-VL) are left out.
    """
    counts = layers_of(judge.part)
    fewest = {kind: min(count, FEWEST) for kind, count in counts.items()}
    least = _reading(replace(judge, part=with_layers(judge.part, fewest)), b, size, with_gradient)
    kept = least.kept
    for kind, count in counts.items():
        if count > FEWEST:
            more = with_layers(judge.part, fewest | {kind: FEWEST + 1})
            kept += (count - FEWEST) * (
                _reading(replace(judge, part=more), b, size, with_gradient).kept - least.kept
            )
    return Piece(kept + least.forward - least.kept, kept, kept + least.backward - least.kept)


@cache
@quietly()
def _reading(judge: Judge, b: int, size: tuple[int, int], with_gradient: bool) -> Piece:
    network = _prepared(judge)
    with in_shapes_alone(network):
        images = torch.empty(b, 3, *size, requires_grad=with_gradient)
    with torch.set_grad_enabled(
        with_gradient
    ):  # outside the mode: whole numbers, which say where images lie among tokens, stay real
        return measured(lambda: score(judge, network, images), [*residents(network), images])


def layers_of(part: Part) -> dict[str, int]:
    """Layers of the vision tower and of the language model."""
    text = part.config.get("text_config", part.config)
    return {"vision": part.config["vision_config"]["depth"], "text": text["num_hidden_layers"]}


def with_layers(part: Part, counts: dict[str, int]) -> Part:
    """The same model with as many layers, all of full attention."""
    told, vision = part.config, counts["vision"]
    of_vision = {
        "depth": vision,
        "fullatt_block_indexes": list(range(vision)),
        "deepstack_visual_indexes": [],
    }
    fewer = {name: value for name, value in of_vision.items() if name in told["vision_config"]}
    text = told.get("text_config", told)
    kinds = (
        {"layer_types": (text["layer_types"] * counts["text"])[: counts["text"]]}
        if text.get("layer_types")
        else {}
    )
    of_text = {"num_hidden_layers": counts["text"], **kinds}
    nested = {"text_config": {**text, **of_text}} if "text_config" in told else of_text
    return part.changed(vision_config={**told["vision_config"], **fewer}, **nested)


def _balanced(images: Images, asked: list[Callable[[Images], Tensor]]) -> Tensor:
    at = images.detach().requires_grad_()
    gradients = [torch.autograd.grad(ask(at), at)[0] for ask in asked]
    return (torch.stack(gradients).sum(0) * images).sum()


def score(judge: Judge, network: Any, images: Images) -> Tensor:
    """The sum of what a reward says of images in [0, 1] under all its texts; the graph is that of the reward itself."""
    return SCORES[judge.kind](judge, network, images)


def _clip(judge: Judge, network: Any, images: Images) -> Tensor:
    return normalize(
        network.visual_projection(
            network.vision_model(pixel_values=judge.pixels(images)).pooler_output
        ),
        dim=-1,
    ).sum()


def _siglip(judge: Judge, network: Any, images: Images) -> Tensor:
    return normalize(
        network.vision_model(pixel_values=judge.pixels(images)).pooler_output, dim=-1
    ).sum()


def _aesthetic(judge: Judge, network: Any, images: Images) -> Tensor:
    return network(network.encode_image(judge.pixels(images))).sum()


def _image_reward(judge: Judge, network: Any, images: Images) -> Tensor:
    seen = network.encode_image(judge.pixels(images))
    ids = torch.zeros(len(images), image_reward.LENGTH, dtype=torch.long)
    return torch.stack(
        [network(seen, ids, torch.ones_like(ids)).sum() for _ in range(judge.texts)]
    ).sum()


def _mps(judge: Judge, network: Any, images: Images) -> Tensor:
    clip = network.model
    seen = clip.visual_projection(
        clip.vision_model(pixel_values=judge.pixels(images)).last_hidden_state
    )
    tokens, heard = (
        torch.zeros(len(images), CLIP_TEXT, seen.shape[-1]),
        torch.ones(len(images), CLIP_TEXT, dtype=torch.bool),
    )
    return torch.stack(
        [network.cross_model(seen, tokens, heard)[:, 0].sum() for _ in range(judge.texts)]
    ).sum()


def _vlm(judge: Judge, network: Any, images: Images) -> Tensor:
    """Its logits of two answers are too little to count; so is HPSv3's head."""
    seen = qwen_vl.encode_images(network.model, judge.pixels, images)  # pyright: ignore[reportArgumentType]
    asked = _chat(len(images), judge.tokens, seen.tokens.shape[1])
    plain = (
        torch.arange(asked.ids.shape[1]).expand(3, *asked.ids.shape)
        if judge.kind == "hpsv3"
        else None
    )
    return torch.stack(
        [
            qwen_vl.last_hidden_state(network.model, seen, asked, plain).float().sum()
            for _ in range(judge.texts)
        ]
    ).sum()


def _chat(b: int, tokens: int, image_tokens: int) -> ChatBatch:
    """Chats of one length, the image first."""
    length = tokens + image_tokens
    return ChatBatch(
        torch.zeros(b, length, dtype=torch.long), (0,) * b, image_tokens, (length,) * b
    )


SCORES: dict[str, Callable[[Judge, Any, Images], Tensor]] = {
    "clip": _clip,
    "siglip": _siglip,
    "aesthetic": _aesthetic,
    "image_reward": _image_reward,
    "mps": _mps,
    "vlm": _vlm,
    "hpsv3": _vlm,
}


def _prepared(judge: Judge) -> Any:
    network = judge.network()
    if judge.recompute:
        recompute(network)
    return network


def decoded(vae: Any, x0: Latents, recompute: bool) -> Images:
    """As the family of this VAE decodes."""
    kind = type(vae).__name__
    if kind == "AutoencoderKLQwenImage":
        return frame_autoencoder.decode_frame(vae, x0, recompute)
    if kind == "AutoencoderKLFlux2":  # latents come as channels of 2x2 blocks
        return (
            vae.decode(pixel_shuffle(x0, 2).to(vae.dtype), return_dict=False)[0].float() / 2 + 0.5
        )
    return autoencoder.decode_latents(vae, x0)


def _vae(of: Judged) -> Any:
    vae = built(of.vae)
    vae.to(of.dtype)
    if (
        of.recompute and of.vae.class_name != "AutoencoderKLQwenImage"
    ):  # it has no switch of its own
        vae.enable_gradient_checkpointing()
    return vae
