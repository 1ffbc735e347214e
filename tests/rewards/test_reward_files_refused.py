"""One table of refusals: damaged, missing and unfitting files, when loading and when checking."""

from __future__ import annotations

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
from directalign.types import DirectAlignError

Damage = Callable[[Any, Path], Any]
"""Changes the files of a folder, or returns changed settings."""


def cut(name: str, size: int) -> Damage:
    def damage(settings: Any, folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:size])

    return damage


def remove(*names: str) -> Damage:
    def damage(settings: Any, folder: Path) -> None:
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def edit(name: str, **tensors: Tensor | None) -> Damage:
    """Replace tensors of a weight file; None removes one. `__` in a name is a dot."""

    def damage(settings: Any, folder: Path) -> None:
        file = folder / name
        is_safe = file.suffix == ".safetensors"
        weights: Any = load_file(file) if is_safe else torch.load(file)
        weights = weights.get("state_dict", weights)
        for key, tensor in tensors.items():
            key = key.replace("__", ".")
            if tensor is None:
                del weights[key]
            else:
                weights[key] = tensor
        metadata = {"format": "pt"}
        save_file(weights, file, metadata=metadata) if is_safe else torch.save(weights, file)

    return damage


def pickled(name: str) -> Damage:
    def damage(settings: Any, folder: Path) -> None:
        torch.save(torch.nn.Linear(2, 2), folder / name)

    return damage


def program(name: str) -> Damage:
    def damage(settings: Any, folder: Path) -> None:
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), folder / name)

    return damage


def write(name: str, text: str) -> Damage:
    def damage(settings: Any, folder: Path) -> None:
        (folder / name).write_text(text)

    return damage


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
OPEN_CLIP = "weights/weights.pt"
BLIP = "blip.visual_encoder."
CONFIG = "weights/open_clip_config.json"
MODEL = {"embed_dim": 8, "vision_cfg": {"width": 16}, "text_cfg": {"width": 16}}
ROWS: list[tuple[str, Damage, str]] = [
    # transformers folders
    *[("clip", remove(name), name) for name in ("config.json", "model.safetensors", HEADER)],
    ("clip", remove("tokenizer.json"), "tokenizer.json"),
    ("clip", remove("."), "no such folder"),
    ("clip", setting(activation="gelu"), "held.activation: gelu, but the config.json of"),
    *[("siglip", remove(name), name) for name in ("config.json", "model.safetensors", HEADER)],
    ("siglip", remove("spiece.model"), "tokenizer.json"),
    *[("clip", cut("model.safetensors", size), WHOLE) for size in (0, 5, 200, -100)],
    *[("siglip", cut("model.safetensors", size), WHOLE) for size in (0, 200, -100)],
    ("siglip", configure("config.json", model_type="siglip2"), "a model of type siglip2"),
    ("siglip", setting(path="open_clip.safetensors"), "SigLIP needs a transformers folder"),
    # open_clip
    *[("open_clip", cut(OPEN_CLIP, size), f"weights.pt: {WHOLE}") for size in (0, 10, 1000, -200)],
    ("open_clip", pickled(OPEN_CLIP), PICKLED),
    ("open_clip", program(OPEN_CLIP), "holds a program (TorchScript), which is never run"),
    ("open_clip", edit(OPEN_CLIP, visual__ln_post__bias=None), "lacks visual.ln_post.bias"),
    (
        "open_clip",
        edit(OPEN_CLIP, visual__transformer__resblocks__1__attn__in_proj_weight=None),
        "lacks visual.transformer.resblocks.1.attn.in_proj_weight",
    ),
    ("open_clip", edit(OPEN_CLIP, text_projection=None), "lacks or misshapes 'text_projection'"),
    ("open_clip", edit(OPEN_CLIP, visual__conv1__weight=None), "holds no CLIP of open_clip"),
    ("open_clip", edit(OPEN_CLIP, more=torch.ones(1)), "has the unknown more"),
    ("open_clip", edit(OPEN_CLIP, visual__proj=torch.ones(16, 9)), "another shape visual.proj"),
    ("open_clip", edit(OPEN_CLIP, visual__trunk__x=torch.ones(1)), "a vision tower of timm"),
    ("open_clip", edit(OPEN_CLIP, visual__layer1__x=torch.ones(1)), "holds a ResNet CLIP"),
    (
        "open_clip",
        edit(OPEN_CLIP, text__transformer__embeddings__x=torch.ones(1)),
        "holds a text tower of transformers",
    ),
    ("open_clip", setting(processor=None), f"{BESIDE}{{folder}}/weights beside the weights"),
    ("open_clip", setting(activation="gelu"), "held.activation: gelu, but {folder}/weights/open"),
    *[
        ("open_clip", configure(CONFIG, model_cfg=MODEL | change), complaint)
        for change, complaint in (
            ({"vision_cfg": {"width": 32}}, "is of another model than weights.pt"),
            ({"vision_cfg": {"width": 16, "pool_type": "avg"}}, "vision_cfg sets pool_type"),
            ({"text_cfg": {"width": 16, "no_causal_mask": True}}, "text_cfg sets no_causal_mask"),
            ({"text_cfg": None}, "not the config of an open_clip model"),
        )
    ],
    # ImageReward
    ("image_reward", cut("ImageReward.pt", 5000), f"ImageReward.pt: {WHOLE}"),
    ("image_reward", pickled("ImageReward.pt"), PICKLED),
    *[
        ("image_reward", edit("ImageReward.pt", **{name: None}), f"lacks {name}")
        for name in (
            f"{BLIP}pos_embed",
            f"{BLIP}blocks.1.attn.qkv.bias",
            "blip.text_encoder.encoder.layer.0.crossattention.self.key.weight",
            "blip.text_encoder.embeddings.word_embeddings.weight",
            "mlp.layers.4.weight",
        )
    ],
    *[
        ("image_reward", edit("ImageReward.pt", **{name: torch.zeros(shape)}), f"shape {name}")
        for name, shape in (
            (f"{BLIP}norm.weight", (7,)),
            ("mlp.layers.0.weight", (1024, 32)),
            (f"{BLIP}patch_embed.proj.weight", (128,)),
        )
    ],
    (
        "image_reward",
        edit("ImageReward.pt", mlp__layers__9__weight=torch.zeros(1, 1)),
        "has the unknown mlp.layers.9.weight",
    ),
    (
        "image_reward",
        edit("ImageReward.pt", **{f"{BLIP}pos_embed": torch.zeros(1, 16, 128)}),
        "has 15 patches, which fill no square",
    ),
    *[
        ("image_reward", configure("med_config.json", **{name: value}), f"{name} {value} does not")
        for name, value in (
            ("hidden_size", 768),
            ("num_attention_heads", 7),
            ("hidden_act", "sharp"),
        )
    ],
    ("image_reward", write("med_config.json", "{"), "med_config.json: not readable as JSON"),
    ("image_reward", write("med_config.json", "{}"), "med_config.json: cannot be read (KeyError"),
    ("image_reward", remove("med_config.json"), "is 48 wide, no multiple of the 64"),
    ("image_reward", remove("bert"), "held.processor: {folder}/bert: no such folder"),
    ("image_reward", setting(path="{folder}/bert"), "no file of weights; give ImageReward.pt"),
    ("image_reward", setting(path="{folder}/none.pt"), "held.path: {folder}/none.pt: no such file"),
    # aesthetic heads
    ("improved", cut("improved.pth", 2000), f"improved.pth: {WHOLE}"),
    ("v2_5", pickled("v2_5.pth"), PICKLED),
    ("linear", edit("linear.pth", bias=None), "lacks bias"),
    ("linear", edit("linear.pth", more=torch.zeros(1)), "has the unknown more"),
    ("improved", edit("improved.pth", layers__4__weight=None), "lacks layers.4.weight"),
    ("v2_5", edit("v2_5.pth", scoring_head__8__bias=torch.zeros(3)), "shape scoring_head.8.bias"),
    (
        "linear",
        edit("linear.pth", weight=torch.zeros(1, 768)),
        "held.backbone: {folder}/linear_backbone: gives 24 features, and {folder}/linear.pth, a "
        "LAION linear aesthetic head, reads 768",
    ),
    (
        "linear",
        edit("linear.pth", weight=None, bias=None, logit_scale=torch.zeros(())),
        "no aesthetic head (it holds logit_scale)",
    ),
    ("linear", setting(path="{folder}/linear_backbone"), "no file of weights; give the head's own"),
    (
        "improved",
        configure("improved_backbone/preprocessor_config.json", crop_size=64),
        "its images are 64 x 64 and the model reads 32 x 32",
    ),
    ("improved", configure("improved_backbone/config.json", model_type="siglip"), "of type siglip"),
    ("v2_5", cut("v2_5_backbone/model.safetensors", 3000), "held.backbone: {folder}/v2_5_back"),
    ("v2_5", remove("v2_5_backbone"), "held.backbone: {folder}/v2_5_backbone: no such folder"),
    # MPS
    *[("mps", cut("mps.safetensors", size), f"mps.safetensors: {WHOLE}") for size in (0, 100, -50)],
    ("mps", setting(path="{folder}/clip"), "MPS is a single file of weights"),
    ("mps", setting(processor=None), f"{BESIDE}{{folder}} beside the weights has no tokenizer"),
    ("mps", remove("clip/config.json"), "config.json is missing; name the CLIP that MPS was made"),
    ("mps", edit("mps.safetensors", more=torch.ones(1)), "has the unknown more"),
    (
        "mps",
        edit("mps.safetensors", cross_model__layers__0__0__fn__to_q__weight=None),
        "not the weights of an MPS",
    ),
    # Qwen VL
    ("qwen2_5_vl", setting(yes="Certainly"), "held.yes: 'Certainly' is "),
    ("qwen2_5_vl", setting(no=""), "held.no: '' is 0 tokens"),
    ("qwen2_5_vl", setting(no="Yes"), "held.no: 'Yes' is the same token as held.yes"),
    (
        "qwen2_5_vl",
        configure("config.json", model_type="clip"),
        "holds a model of type clip, known",
    ),
    *[("qwen2_5_vl", cut("model.safetensors", size), WHOLE) for size in (0, 200, -100)],
    ("qwen2_5_vl", missing_shard, "model-00002-of-00002.safetensors"),
    *[
        ("qwen2_5_vl", remove(name), name)
        for name in ("config.json", "tokenizer.json", "chat_template.json", HEADER)
    ],
    *[
        ("qwen2_5_vl", configure("chat_template.json", chat_template=template), complaint)
        for template, complaint in (
            ("{{ messages[0]['content'][1]['text'] }}", "shows no image"),
            ("{% if", "cannot be used"),
            (None, "is missing"),
        )
    ],
    *[
        ("qwen2_5_vl", write(HEADER, text), f"held.path: {{folder}}/{HEADER}: no image settings")
        for text in ('{"resample": 2}', '{"patch_size": "large"}', '{"image_mean": 3}')
    ],
    ("qwen2_5_vl", write(HEADER, "{"), f"held.path: {{folder}}/{HEADER}: not readable as JSON"),
    # HPSv3
    *[("hpsv3", cut("HPSv3.safetensors", size), WHOLE) for size in (0, 100, -50)],
    ("hpsv3", edit("HPSv3.safetensors", rm_head__3__weight=None), "lacks rm_head.3.weight"),
    ("hpsv3", edit("HPSv3.safetensors", rm_head__5__bias=torch.zeros(1)), "shape rm_head.5.bias"),
    ("hpsv3", edit("HPSv3.safetensors", model__x=torch.zeros(1)), "the unknown language_model.x"),
    (
        "hpsv3",
        edit("HPSv3.safetensors", model__embed_tokens__weight=torch.zeros(700, 16)),
        "the model knows 700",
    ),
    ("hpsv3", setting(processor=None), "set processor: Qwen/Qwen2-VL-7B-Instruct"),
    (
        "hpsv3",
        configure("processor/config.json", model_type="qwen2_5_vl"),
        "held.processor: {folder}/processor: holds no Qwen2-VL",
    ),
    ("hpsv3", setting(path="{folder}/processor"), "name the file of weights"),
    ("hpsv3", setting(path="{folder}/none.safetensors"), "none.safetensors: no such file"),
]
LOAD_ONLY: list[tuple[str, Damage, str]] = [
    (
        "clip",
        edit("model.safetensors", visual_projection__weight=None),
        "weights lack visual_projection.weight",
    ),
    ("clip", configure("config.json", projection_dim=12), "not a transformers CLIPModel"),
    (
        "open_clip",
        configure("clip/preprocessor_config.json", crop_size=24),
        "held.processor: its images are 24 x 24 and the model reads 32 x 32",
    ),
    (
        "siglip",
        edit("model.safetensors", vision_model__head__probe=None),
        "weights lack vision_model.head.probe",
    ),
    ("qwen2_5_vl", edit("model.safetensors", lm_head__weight=None), "weights lack lm_head.weight"),
    (
        "qwen2_5_vl",
        configure(HEADER, patch_size=8),
        "held.path: its image settings make patches of 8",
    ),
]
"""What only the weights, or the model beside the image settings, show."""


def complaint_of(act: Callable[..., Any], settings: Any) -> str:
    with pytest.raises(DirectAlignError) as refused:
        act(settings, key="held")
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("name", "damage", "complaint", "checked"),
    [(*row, True) for row in ROWS] + [(*row, False) for row in LOAD_ONLY],
)
def test_refused_in_one_line(
    name: str,
    damage: Damage,
    complaint: str,
    checked: bool,
    sections: Callable[[str], Any],
    tmp_path: Path,
) -> None:
    settings = sections(name)
    source = Path(settings.path)
    names = ("path", "processor", "backbone")
    paths = {part: getattr(settings, part, None) for part in names}
    while not all(Path(path).is_relative_to(source) for path in paths.values() if path):
        source = source.parent
    folder = Path(shutil.copytree(source, tmp_path / "copy"))
    moved = {
        part: str(folder / Path(path).relative_to(source)) for part, path in paths.items() if path
    }
    settings = settings.model_copy(update=moved)
    settings = damage(settings, folder) or settings
    loading = complaint_of(load_reward, settings)
    assert re.sub(r"\{folder\}", str(folder), complaint) in loading
    if checked:
        assert complaint_of(check_reward, settings) == loading
