"""How diffusers' own Qwen-Image-Edit pipelines read prompts and sources."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import QwenImageEditPlusPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as edit_plus
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessorPil

from directalign.types import Sources
from tiny import Qwen2VLProcessor

Tensors = Mapping[str, Any]


def pictures(sources: Sources) -> list[Image.Image]:
    """The sources as files would hold them."""
    pixels = (sources.images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(each) for each in pixels]


def source_reader(folder: Path) -> Qwen2VLProcessor:
    """The library's processor, without videos, which need torchvision."""
    images = Qwen2VLImageProcessorPil.from_pretrained(folder / "processor")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "processor")
    return Qwen2VLProcessor(images, tokenizer, None)


def resized(pipeline: Any, picture: Image.Image, area: int) -> Image.Image:
    width, height = edit_plus.calculate_dimensions(area, picture.width / picture.height)
    return pipeline.image_processor.resize(picture, height, width)


def edit_prompts(pipeline: Any, prompts: list[str], sources: Sources) -> tuple[Tensors, Tensors]:
    """Each with its source, by itself: of a list of pictures the first pipeline resizes none."""
    many = isinstance(pipeline, QwenImageEditPlusPipeline)
    area = edit_plus.CONDITION_IMAGE_SIZE if many else edit_plus.VAE_IMAGE_SIZE
    seen = [resized(pipeline, each, area) for each in pictures(sources)]

    def rows(texts: list[str]) -> Tensors:
        found = [
            pipeline.encode_prompt([text], image=[image] if many else image)[0][0]
            for text, image in zip(texts, seen, strict=True)
        ]
        return {"sequence": found}

    return rows(prompts), rows([" "] * len(prompts))


def edit_network(
    pipeline: Any, x_t: Tensor, sigma: Tensor, tensors: Tensors, sources: Sources
) -> Tensor:
    """Row by row, as long as its prompt."""
    h, w = x_t.shape[2:]
    found = []
    for row, level, text, picture in zip(
        x_t, sigma.float(), tensors["sequence"], pictures(sources), strict=True
    ):
        image = resized(pipeline, picture, edit_plus.VAE_IMAGE_SIZE)
        pixels = pipeline.image_processor.preprocess(image).unsqueeze(2)
        source = pipeline._encode_vae_image(image=pixels, generator=None)[:, :, 0]
        given = [pipeline._pack_latents(each, *each.shape) for each in (row[None], source)]
        tokens = pipeline.transformer(
            hidden_states=torch.cat(given, 1),
            timestep=level[None],
            encoder_hidden_states=text[None],
            img_shapes=[[(1, h // 2, w // 2), (1, source.shape[2] // 2, source.shape[3] // 2)]],
        ).sample
        own = pipeline._unpack_latents(tokens[:, : h * w // 4], 4 * h, 4 * w, 4)
        found.append(own[:, :, 0])
    return torch.cat(found)
