"""HPSv3 (arXiv 2508.03789) and HPSv3++ (arXiv 2606.14657): a Qwen VL and a head that predicts a
preference score at one token. The tensors of the file say which of the two it is.

score = scale · mu, unbounded (HPSv3's means by model: SD 2 −0.2, SD 3 medium 5.3, SDXL 8.2,
FLUX.1-dev 10.4, Kolors 10.6). `processor` is the folder or hub id with the tokenizer, template,
image settings and config.json of the Qwen VL that the model was made from (its weights are not
read). As in training, an image is resized to about 200,704 pixels.

| | HPSv3 | HPSv3++ |
|---|---|---|
| `path`, on the hub | MizzenAI/HPSv3/HPSv3.safetensors | Junjun2333/HPSv3-PlusPlus/hpsv3++.pth |
| `processor` | Qwen/Qwen2-VL-7B-Instruct | Qwen/Qwen3-VL-8B-Instruct |
| question | visual quality, text alignment | visual quality, and the prompt |
| positions | plain (0, 1, 2, ...) | multimodal |
| image | 256 tokens | resized again to multiples of 32 pixels: 196 tokens |

HPSv3++ modulates the hidden state before the head (FiLM): hidden · (1 + gamma) + beta, where gamma
and beta depend on the capability, 0 to 1, of the generator, predicted from the hidden state, and on
`iteration`. The capability is a condition, not a path of the gradient, as in training. It is
predicted for each image by itself. The published code does so for a single image, but pools a batch
of several into one capability, so that there a score depends on the rest of the batch.

Both are tested equal to the published code on random weights; the published weights were not
available, so tensor names of both transformers layouts are accepted (model.layers and visual;
model.language_model and model.visual). Not supported: the standard deviation sigma.

`hpsv3_prompt.txt` is HPSv3's training prompt (package hpsv3, MIT licence, copyright 2024 HPSv3
Team). The text after the reward token in the original ("END") is omitted: a causal model does not
attend to it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel

from .. import config
from ..io import hub
from ..io.image_settings import IMAGE_SETTINGS, VlmPixels
from ..types import DirectAlignError, Images, PerSample
from . import qwen_vl
from . import weights as files
from .common import BaseReward, Device, recompute
from .qwen_vl import last_hidden_state

PIXELS = 256 * 28 * 28
TRAINED_SIZE = VlmPixels(min_pixels=PIXELS, max_pixels=PIXELS)
MADE_FROM = "Qwen/Qwen2-VL-7B-Instruct"


class Hpsv3Reward(BaseReward):
    """A frozen HPSv3 or HPSv3++ (`interfaces.Reward`); features are image tokens, scores unbounded.

    `head` has the layers above the model, with the names of the file.
    """

    name = "hpsv3"
    weight_file = (
        "name the file of weights: HPSv3.safetensors or hpsv3++.pth, or on the hub "
        "MizzenAI/HPSv3/HPSv3.safetensors"
    )

    def __init__(
        self,
        model: PreTrainedModel,
        head: nn.ModuleDict,
        chat: qwen_vl.Chat,
        pixels: VlmPixels,
        settings: config.Hpsv3Config,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.head: Any = head.eval().requires_grad_(False)
        self.chat, self.pixels, self.settings = chat, pixels, settings
        self.plus_plus = "film_gen" in head

    @classmethod
    def _load(cls, settings: config.Hpsv3Config, device: Device, key: str) -> Hpsv3Reward:
        file = files.locate(settings.path, f"{key}.path")
        reader = _reader_folder(settings, key, online=True)
        assert reader is not None
        chat, pixels = _reader(reader, key)
        weights = files.read_weights(file, f"{key}.path")
        head = described(settings, files.shapes_of(weights), reader, file, key)
        qwen_vl.check_fits(head["model"].config, pixels, chat, f"{key}.processor")
        own = {inner(name): tensor for name, tensor in weights.items()}
        model = files.filled(head, own, getattr(torch, settings.dtype)).pop("model")
        recompute(model, settings.gradient_checkpointing)
        return cls(model.to(device), head.to(device), chat, pixels, settings)

    @classmethod
    def meta(cls, settings: config.Hpsv3Config, key: str, configs: Any) -> Hpsv3Reward:
        file = configs.file(settings.path, f"{key}.path")
        name = settings.processor or (MADE_FROM if file is None else str(file.parent))
        folder = configs.folder(name)
        kind, found = qwen_vl.meta_config(name, f"{key}.processor", configs)
        if file is not None and folder is not None:
            shapes = files.read_shapes(file, f"{key}.path")
            head = described(settings, shapes, folder, file, key)
        else:
            head = parts_of(kind.config_class.from_dict(found))
        model = head.pop("model").to(getattr(torch, settings.dtype))
        recompute(model, settings.gradient_checkpointing)
        pixels = VlmPixels.of(configs.image_settings(folder), found, f"{key}.processor")
        chat = qwen_vl.Chat(configs.tokenizer(), "", end=REWARD)
        return cls(model, head, chat, pixels, settings)

    @classmethod
    def _check(cls, settings: config.Hpsv3Config, key: str, online: bool) -> None:
        file = files.check_published(settings.path, f"{key}.path", online)
        reader = _reader_folder(settings, key, online)
        if reader is None:
            return
        chat, pixels = _reader(reader, key)
        if file is not None:
            shapes = files.read_shapes(file, f"{key}.path")
            parts = described(settings, shapes, reader, file, key)
            qwen_vl.check_fits(parts["model"].config, pixels, chat, f"{key}.processor")

    def encode(self, images: Images) -> qwen_vl.ImageTokens:
        """Images (b, 3, h, w) in [0, 1], any size, through the vision tower."""
        return qwen_vl.encode_images(self.model, self.pixels, TRAINED_SIZE.resized(images))

    def score(self, features: qwen_vl.ImageTokens, prompts: Sequence[str]) -> PerSample:
        """scale · mu of each image under its prompt."""
        question = QUALITY if self.plus_plus else QUESTION
        chats = self.chat.for_images([question.replace("{prompt}", p) for p in prompts], features)
        positions = None
        if not self.plus_plus:
            plain = torch.arange(chats.ids.shape[1], device=chats.ids.device)
            positions = plain.expand(3, *chats.ids.shape)
        hidden = last_hidden_state(self.model, features, chats, positions)
        hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        if self.plus_plus:
            capability = self.head["cap_encoder"](hidden.detach())
            iteration = torch.full_like(capability, self.settings.iteration)
            condition = self.head["cond_encoder"](torch.cat([capability, iteration], 1))
            gamma, beta = self.head["film_gen"](condition).chunk(2, 1)
            hidden = hidden * (1 + gamma) + beta
        return self.settings.scale * self.head["rm_head"](hidden)[:, 0]


def _reader_folder(settings: config.Hpsv3Config, key: str, online: bool) -> Path | None:
    """The folder of config, tokenizer, template and image settings: `processor`, else the file's.

    None if it is on the hub and not `online`.
    """
    file = files.check_published(settings.path, f"{key}.path")
    if settings.processor is None and not (
        file is not None and any((file.parent / name).exists() for name in IMAGE_SETTINGS)
    ):
        where = hub.on_the_hub(settings.path)[0] if file is None else file.parent
        raise DirectAlignError(
            f"{key}.processor: missing, and {where} has no settings of a Qwen VL: set processor: "
            f"{MADE_FROM}, or Qwen/Qwen3-VL-8B-Instruct for HPSv3++ (no weights are read there)"
        )
    return files.reader_folder(settings, file, key, online, qwen_vl.SETTINGS)


def _reader(folder: Path, key: str) -> tuple[qwen_vl.Chat, VlmPixels]:
    """The chat up to the reward token, which is added to the vocabulary as in training, and
    preprocessing."""
    tokenizer, template = qwen_vl.read_chat(folder, f"{key}.processor")
    if REWARD not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [REWARD]})
    pixels = VlmPixels.read(folder, f"{key}.processor")
    return qwen_vl.Chat(tokenizer, template, end=REWARD), pixels


EMBEDDING = "model.language_model.embed_tokens.weight"
UNUSED = ("lm_head.", "cap_encoder.pool_attn.")
"""What files contain and scores do not need: the vocabulary head, the weights of several images."""
HEADS = ("rm_head.", "cap_encoder.", "cond_encoder.", "film_gen.")


def inner(name: str) -> str:
    """The name in `parts_of` of a published tensor, of either layout."""
    own = name.removeprefix("model.")
    if own.startswith((*HEADS, *UNUSED)):
        return own
    known = own.startswith(("visual.", "language_model."))
    return f"model.{own}" if known else f"model.language_model.{own}"


def described(
    settings: config.Hpsv3Config, shapes: files.Shapes, reader: Path, file: Path, key: str
) -> Any:
    """The parts of a file's model on the meta device: of the processor's config, with as many
    tokens as the file embeds.

    Raises DirectAlignError for a missing, unknown or misshapen tensor, the processor of the other
    model, or an iteration for HPSv3.
    """
    own = {inner(name): shape for name, shape in shapes.items()}
    plus_plus = any(name.startswith(HEADS[1:]) for name in own)
    if settings.iteration and not plus_plus:
        raise DirectAlignError(
            f"{key}.iteration: {settings.iteration}: {file} is an HPSv3, and only HPSv3++ has this "
            "condition: remove it"
        )
    kind = qwen_vl.KINDS["qwen3_vl" if plus_plus else "qwen2_vl"]
    found = files.read_config(kind, reader, f"{key}.processor")
    text = found.get_text_config()
    text.vocab_size = int(own.get(EMBEDDING, [text.vocab_size])[0])
    with torch.device("meta"):
        parts = parts_of(found)
    wanted, name = files.shapes_of(parts.state_dict()), "HPSv3++" if plus_plus else "HPSv3"
    files.check_tensors(wanted, own, file, f"{key}.path", name, UNUSED)
    return parts


def parts_of(found: Any) -> Any:
    """The model, the head from a hidden state to mu and sigma, and for a Qwen3-VL the condition's
    layers; Identity takes the place of training's dropout."""
    width = found.get_text_config().hidden_size
    layers = [nn.Linear(width, 1024), nn.ReLU(), nn.Identity(), nn.Linear(1024, 16), nn.ReLU()]
    head = nn.Sequential(*layers, nn.Linear(16, 2))
    parts = {"model": AutoModel.from_config(found), "rm_head": head}
    if found.model_type == "qwen3_vl":
        capability = {"proj": nn.Linear(width, 256), "out_proj": nn.Linear(256, 1)}
        parts["cap_encoder"] = nn.Sequential(OrderedDict(capability, sigmoid=nn.Sigmoid()))
        parts["cond_encoder"] = nn.Sequential(nn.Linear(2, 256), nn.GELU(), nn.Linear(256, 256))
        film = [nn.Linear(256, width), nn.ReLU(), nn.Linear(width, 2 * width)]
        parts["film_gen"] = nn.Sequential(*film)
    return nn.ModuleDict(parts)


REWARD = "<|Reward|>"
"""The token at which the head reads the hidden state."""
QUESTION = Path(__file__).with_name("hpsv3_prompt.txt").read_text(encoding="utf-8")
"""The training prompt, verbatim, trailing spaces included."""
QUALITY = QUESTION[: QUESTION.index("\n**Text Al")] + QUESTION[QUESTION.index("Textual prompt") :]
"""HPSv3++'s: without the part on text alignment."""
