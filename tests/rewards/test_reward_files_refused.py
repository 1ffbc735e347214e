"""One table of refusals: damaged, missing and unfitting files, when loading and when checking."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from directalign.rewards import check_reward, load_reward
from recorded_rewards import FIXTURES
from rewards.cases import refused

Damage = Callable[[Any, Path], Any]
"""Changes the files of a folder, or returns changed settings."""
Rows = list[tuple[str, Damage, str]]
"""Name of a reward, damage to its files, and what the error says."""


def cut(name: str, size: int) -> Damage:
    return lambda _, at: (at / name).write_bytes((at / name).read_bytes()[:size])


def write(name: str, text: str) -> Damage:
    return lambda _, at: (at / name).write_text(text)


def remove(name: str) -> Damage:
    def damage(settings: Any, folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def edit(name: str, tensors: dict[str, Tensor | tuple[int, ...] | None]) -> Damage:
    """Replace tensors of a weight file, by zeros of a shape; None removes one."""

    def damage(settings: Any, folder: Path) -> None:
        file = folder / name
        is_safe = file.suffix == ".safetensors"
        weights: Any = load_file(file) if is_safe else torch.load(file)
        weights = weights.get("state_dict", weights)
        for key, tensor in tensors.items():
            if tensor is None:
                del weights[key]
            else:
                weights[key] = torch.zeros(tensor) if isinstance(tensor, tuple) else tensor
        save_file(weights, file, {"format": "pt"}) if is_safe else torch.save(weights, file)

    return damage


def pickled(name: str) -> Damage:
    return lambda _, folder: torch.save(torch.nn.Linear(2, 2), folder / name)


def program(name: str) -> Damage:
    return lambda _, folder: torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), folder / name)


def configure(name: str, **values: Any) -> Damage:
    """Change values of a JSON file."""

    def damage(settings: Any, folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | values))

    return damage


def setting(**values: Any) -> Damage:
    """Change the recipe section; `{folder}` is the folder of files."""

    def damage(settings: Any, folder: Path) -> Any:
        filled = {
            key: value.format(folder=folder) if isinstance(value, str) else value
            for key, value in values.items()
        }
        return settings.model_copy(update=filled)

    return damage


def missing_shard(settings: Any, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


WHOLE = "not a complete"
HEADER = "preprocessor_config.json"
PICKLED = "holds pickled objects, which are never run; save its state_dict() as .safetensors"
BESIDE = "held.processor: missing, and "
FOLDERS: Rows = [
    ("clip", remove("."), "no such folder"),
    ("clip", setting(activation="gelu"), "held.activation: gelu, but the config.json of"),
    ("clip", cut("model.safetensors", -100), WHOLE),
    ("siglip", remove("spiece.model"), "tokenizer.json"),
    ("siglip", configure("config.json", model_type="siglip2"), "a model of type siglip2"),
    ("siglip", setting(path="open_clip.safetensors"), "SiglipModel needs a transformers folder"),
]
FOLDERS += [
    ("clip", remove(name), name)
    for name in ("config.json", "model.safetensors", "tokenizer.json", HEADER)
]

OPEN_CLIP = "weights/weights.pt"
QKV = "visual.transformer.resblocks.1.attn.in_proj_weight"
CONFIG = "weights/open_clip_config.json"
OPEN_CLIP_ROWS: Rows = [
    ("open_clip", setting(processor=None), f"{BESIDE}{{folder}}/weights beside the weights"),
    ("open_clip", setting(activation="gelu"), "held.activation: gelu, but {folder}/weights/open"),
    ("open_clip", pickled(OPEN_CLIP), PICKLED),
    ("open_clip", program(OPEN_CLIP), "holds a program (TorchScript), which is never run"),
    ("open_clip", cut(OPEN_CLIP, -200), f"weights.pt: {WHOLE}"),
]
OPEN_CLIP_ROWS += [
    ("open_clip", edit(OPEN_CLIP, {name: shape}), complaint)
    for name, shape, complaint in (
        ("visual.ln_post.bias", None, "lacks visual.ln_post.bias"),
        (QKV, None, f"lacks {QKV}"),
        ("visual.conv1.weight", None, "holds no CLIP of open_clip"),
        ("visual.proj", (16, 9), "another shape visual.proj"),
        ("visual.trunk.x", (1,), "a vision tower of timm"),
        ("visual.layer1.x", (1,), "holds a ResNet CLIP"),
        ("text.transformer.embeddings.x", (1,), "holds a text tower of transformers"),
    )
]
MODEL = {"embed_dim": 8, "vision_cfg": {"width": 16}, "text_cfg": {"width": 16}}
OPEN_CLIP_ROWS += [
    ("open_clip", configure(CONFIG, model_cfg=MODEL | change), complaint)
    for change, complaint in (
        ({"vision_cfg": {"width": 32}}, "is of another model than weights.pt"),
        ({"vision_cfg": {"width": 16, "pool_type": "avg"}}, "vision_cfg sets pool_type"),
        ({"text_cfg": None}, "not the config of an open_clip model"),
    )
]

BLIP = "blip.visual_encoder."
MED = "med_config.json"
IMAGE_REWARD: Rows = [
    ("image_reward", cut("ImageReward.pt", 5000), f"ImageReward.pt: {WHOLE}"),
    ("image_reward", pickled("ImageReward.pt"), PICKLED),
    ("image_reward", configure(MED, hidden_size=768), "hidden_size 768 does not"),
    ("image_reward", configure(MED, hidden_act="sharp"), "hidden_act sharp does not"),
    ("image_reward", write(MED, "{"), f"{MED}: not readable as JSON"),
    ("image_reward", write(MED, "{}"), f"{MED}: cannot be read (KeyError"),
    ("image_reward", remove(MED), "is 48 wide, no multiple of the 64"),
    ("image_reward", remove("bert"), "held.processor: {folder}/bert: no such folder"),
    ("image_reward", setting(path="{folder}/bert"), "no file of weights; give ImageReward.pt"),
]
IMAGE_REWARD += [
    ("image_reward", edit("ImageReward.pt", {name: shape}), complaint)
    for name, shape, complaint in (
        (f"{BLIP}pos_embed", None, f"lacks {BLIP}pos_embed"),
        (f"{BLIP}blocks.1.attn.qkv.bias", None, f"lacks {BLIP}blocks.1.attn.qkv.bias"),
        (f"{BLIP}norm.weight", (7,), f"shape {BLIP}norm.weight"),
        ("mlp.layers.9.weight", (1, 1), "has the unknown mlp.layers.9.weight"),
        (f"{BLIP}pos_embed", (1, 16, 128), "has 15 patches, which fill no square"),
    )
]

NARROW = (
    "held.backbone: {folder}/linear_backbone: gives 24 features, and {folder}/linear.pth, a LAION "
    "linear aesthetic head, reads 768"
)
NO_HEAD = {"weight": None, "bias": None, "logit_scale": ()}
AESTHETIC: Rows = [
    ("v2_5", pickled("v2_5.pth"), PICKLED),
    ("linear", edit("linear.pth", {"bias": None}), "lacks bias"),
    ("v2_5", edit("v2_5.pth", {"scoring_head.8.bias": (3,)}), "shape scoring_head.8.bias"),
    ("linear", edit("linear.pth", {"weight": (1, 768)}), NARROW),
    ("linear", edit("linear.pth", NO_HEAD), "no aesthetic head (it holds logit_scale)"),
    ("linear", setting(path="{folder}/linear_backbone"), "no file of weights; give the head's own"),
    (
        "improved",
        configure(f"improved_backbone/{HEADER}", crop_size=64),
        "its images are 64 x 64 and the model reads 32 x 32",
    ),
    ("improved", configure("improved_backbone/config.json", model_type="siglip"), "of type siglip"),
    ("v2_5", cut("v2_5_backbone/model.safetensors", 3000), "held.backbone: {folder}/v2_5_back"),
    ("v2_5", remove("v2_5_backbone"), "held.backbone: {folder}/v2_5_backbone: no such folder"),
]

TO_Q = "cross_model.layers.0.0.fn.to_q.weight"
MPS: Rows = [
    ("mps", cut("mps.safetensors", 100), f"mps.safetensors: {WHOLE}"),
    ("mps", setting(path="{folder}/clip"), "MPS is a single file of weights"),
    ("mps", setting(processor=None), f"{BESIDE}{{folder}} beside the weights has no tokenizer"),
    ("mps", remove("clip/config.json"), "config.json is missing; name the CLIP that MPS was made"),
    ("mps", edit("mps.safetensors", {TO_Q: None}), f"lacks {TO_Q}"),
]

QWEN_VL: Rows = [
    ("qwen2_5_vl", setting(yes="Certainly"), "held.yes: 'Certainly' is "),
    ("qwen2_5_vl", setting(no=""), "held.no: '' is 0 tokens"),
    ("qwen2_5_vl", setting(no="Yes"), "held.no: 'Yes' is the same token as held.yes"),
    (
        "qwen2_5_vl",
        configure("config.json", model_type="clip"),
        "a model of type clip; give the folder",
    ),
    ("qwen2_5_vl", cut("model.safetensors", -100), WHOLE),
    ("qwen2_5_vl", missing_shard, "model-00002-of-00002.safetensors"),
    ("qwen2_5_vl", write(HEADER, "{"), f"held.path: {{folder}}/{HEADER}: not readable as JSON"),
]
QWEN_VL += [
    ("qwen2_5_vl", remove(name), name)
    for name in ("config.json", "tokenizer.json", "chat_template.json", HEADER)
]
QWEN_VL += [
    ("qwen2_5_vl", configure("chat_template.json", chat_template=template), complaint)
    for template, complaint in (
        ("{{ messages[0]['content'][1]['text'] }}", "shows no image"),
        ("{% if", "cannot be used"),
        (None, "is missing"),
    )
]
QWEN_VL += [
    ("qwen2_5_vl", write(HEADER, text), f"held.path: {{folder}}/{HEADER}: no image settings")
    for text in ('{"resample": 2}', '{"patch_size": "large"}', '{"image_mean": 3}')
]

HPSV3, PLUS_PLUS = "HPSv3.safetensors", "hpsv3++.pth"
HPSV3_ROWS: Rows = [
    ("hpsv3", edit(HPSV3, {"rm_head.3.weight": None}), "lacks rm_head.3.weight"),
    ("hpsv3", edit(HPSV3, {"rm_head.5.bias": (1,)}), "shape rm_head.5.bias"),
    ("hpsv3", edit(HPSV3, {"model.embed_tokens.weight": (700, 16)}), "the model knows 700"),
    ("hpsv3", setting(processor=None), "set processor: Qwen/Qwen2-VL-7B-Instruct"),
    (
        "hpsv3",
        configure("processor/config.json", model_type="qwen2_5_vl"),
        "held.processor: {folder}/processor: holds a model of type qwen2_5_vl",
    ),
    ("hpsv3", setting(path="{folder}/processor"), "name the file of weights"),
    ("hpsv3", setting(path="{folder}/none.safetensors"), "none.safetensors: no such file"),
    ("hpsv3", setting(iteration=0.5), f"held.iteration: 0.5: {{folder}}/{HPSV3} is an HPSv3"),
    ("hpsv3++", edit(PLUS_PLUS, {"film_gen.2.bias": None}), "lacks film_gen.2.bias"),
    ("hpsv3++", edit(PLUS_PLUS, {"cap_encoder.proj.bias": (9,)}), "shape cap_encoder.proj.bias"),
    ("hpsv3++", setting(processor=None), "or Qwen/Qwen3-VL-8B-Instruct for HPSv3++"),
    (
        "hpsv3++",
        setting(processor=str(FIXTURES / "hpsv3" / "processor")),
        "/processor: holds a model of type qwen2_vl; give the folder of a transformers Qwen3VL",
    ),
]

CLIP_CROP = "clip/preprocessor_config.json"
LOAD_ONLY: Rows = [
    *(
        (name, edit("model.safetensors", {tensor: None}), f"weights lack {tensor}")
        for name, tensor in (("clip", "visual_projection.weight"), ("qwen2_5_vl", "lm_head.weight"))
    ),
    *(
        (name, edit("model.safetensors", {tensor: value}), f"/model.safetensors: {tensor} {what}")
        for name, tensor in (("clip", "logit_scale"), ("qwen2_5_vl", "lm_head.weight"))
        for value, what in (
            (torch.tensor([0.0, float("nan")]), "has values that are not finite"),
            (torch.ones(2, dtype=torch.int8), "is of type I8"),
            (torch.ones(2).bool(), "is of type BOOL"),
            (torch.ones(2, dtype=torch.complex64), "is of type C64"),
        )
    ),
    ("clip", configure("config.json", projection_dim=12), "not readable as a CLIPModel"),
    (
        "open_clip",
        configure(CLIP_CROP, crop_size=24),
        "held.processor: its images are 24 x 24 and the model reads 32 x 32",
    ),
    ("qwen2_5_vl", configure(HEADER, patch_size=8), "held.path: its image settings make patches"),
]
"""What only the weights, or the model beside the image settings, reveal."""
CHECKED = FOLDERS + OPEN_CLIP_ROWS + IMAGE_REWARD + AESTHETIC + MPS + QWEN_VL + HPSV3_ROWS


@pytest.mark.parametrize(
    ("name", "damage", "complaint", "checked"),
    [(*row, True) for row in CHECKED] + [(*row, False) for row in LOAD_ONLY],
)
def test_refused_in_one_line(name, damage, complaint, checked, sections, tmp_path):
    settings = sections(name)
    named = {part: getattr(settings, part, None) for part in ("path", "processor", "backbone")}
    paths = {part: Path(path) for part, path in named.items() if path}
    source = paths["path"]
    while not all(path.is_relative_to(source) for path in paths.values()):
        source = source.parent
    folder = Path(shutil.copytree(source, tmp_path / "copy"))
    moved = {part: str(folder / path.relative_to(source)) for part, path in paths.items()}
    settings = settings.model_copy(update=moved)
    changed = damage(settings, folder)
    settings = changed if isinstance(changed, type(settings)) else settings
    with refused(re.escape(complaint.replace("{folder}", str(folder)))) as loading:
        load_reward(settings, key="held")
    if checked:
        with refused(f"^{re.escape(str(loading.value))}$"):
            check_reward(settings, "held")
