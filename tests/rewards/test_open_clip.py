"""open_clip's files: the original's features to 1e-5, the rule for what shapes do not say, and everything that is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from directalign import config
from directalign.rewards import check_reward, load_reward, open_clip
from directalign.rewards.clip import ClipReward
from directalign.rewards.open_clip import clip_config
from directalign.types import DirectAlignError
from hub_downloads import download_hub, point_at
from tiny_open_clip import open_clip_weights, write_open_clip

FIXTURES = Path(__file__).parents[1] / "fixtures" / "open_clip"
PUBLISHED = json.loads((FIXTURES / "published.json").read_text())
PROMPTS = ["a red star", "a blue ring on an olive background"]


def images(seed: int = 0) -> torch.Tensor:
    return torch.rand(2, 3, 48, 40, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["plain", "quick", "wide_heads", "custom_text"])
@torch.no_grad()
def test_features_are_those_of_open_clip(name: str) -> None:
    model = open_clip.load(FIXTURES / name / "open_clip_model.safetensors", "reward").eval()
    told = load_file(FIXTURES / name / "answers.safetensors")
    image = model.visual_projection(model.vision_model(pixel_values=told["pixels"]).pooler_output)
    text = model.text_projection(model.text_model(input_ids=told["tokens"]).pooler_output)
    assert (image - told["image_features"]).abs().max() < 1e-5
    assert (text - told["text_features"]).abs().max() < 1e-5


def test_the_activation_and_the_heads_matter(tmp_path: Path) -> None:
    """So that equality above says something."""
    told = load_file(FIXTURES / "quick" / "answers.safetensors")
    settings = json.loads((FIXTURES / "quick" / "open_clip_config.json").read_text())
    (tmp_path / "w.safetensors").symlink_to(FIXTURES / "quick" / "open_clip_model.safetensors")
    for change in ({"quick_gelu": False}, {"vision_cfg": settings["model_cfg"]["vision_cfg"] | {"head_width": 6}}):
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings["model_cfg"] | change}))
        other = open_clip.load(tmp_path / "w.safetensors", "reward")
        with torch.no_grad():
            image = other.visual_projection(other.vision_model(pixel_values=told["pixels"]).pooler_output)
        assert (image - told["image_features"]).abs().max() > 1e-3


def shapes_of(sizes: dict) -> dict[str, tuple[int, ...]]:
    """Those that tell a model's size, as open_clip's files have them."""
    vision, text = sizes["vision_cfg"], sizes["text_cfg"]
    blocks = {f"visual.transformer.resblocks.{layer}.mlp.c_fc.weight": (4 * vision["width"], vision["width"]) for layer in range(vision["layers"])}
    blocks |= {f"transformer.resblocks.{layer}.mlp.c_fc.weight": (4 * text["width"], text["width"]) for layer in range(text["layers"])}
    positions = (vision["image_size"] // vision["patch_size"]) ** 2 + 1
    return blocks | {
        "visual.conv1.weight": (vision["width"], 3, vision["patch_size"], vision["patch_size"]),
        "visual.positional_embedding": (positions, vision["width"]),
        "token_embedding.weight": (text.get("vocab_size", 49408), text["width"]),
        "positional_embedding": (text.get("context_length", 77), text["width"]),
        "text_projection": (text["width"], sizes["embed_dim"]),
    }


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_every_published_size_is_told_by_its_shapes(name: str, tmp_path: Path) -> None:
    sizes = PUBLISHED[name]
    vision, text = sizes["vision_cfg"], sizes["text_cfg"]
    found = clip_config(shapes_of(sizes), tmp_path / "w.pt", "reward", "quick_gelu" if sizes["quick_gelu"] else "gelu")
    assert found.vision_config.num_attention_heads == vision["width"] // vision.get("head_width", 64)
    assert found.text_config.num_attention_heads == text["heads"]
    assert found.vision_config.image_size == vision["image_size"] // vision["patch_size"] * vision["patch_size"]
    assert (found.vision_config.num_hidden_layers, found.text_config.num_hidden_layers) == (vision["layers"], text["layers"])
    assert found.vision_config.hidden_act == found.text_config.hidden_act == ("quick_gelu" if sizes["quick_gelu"] else "gelu")


def test_hpsv2_needs_no_setting_and_vit_l_asks_for_its_activation(tmp_path: Path) -> None:
    described = clip_config(shapes_of(PUBLISHED["ViT-H-14"]), tmp_path / "HPS_v2.1_compressed.pt", "reward")
    assert (described.vision_config.hidden_act, described.vision_config.num_attention_heads) == ("gelu", 16)
    with pytest.raises(DirectAlignError, match=r"reward\.activation: missing; .*ViT-L\.pt does not tell its own: set quick_gelu"):
        clip_config(shapes_of(PUBLISHED["ViT-L-14"]), tmp_path / "ViT-L.pt", "reward")


def test_unknown_widths_and_vocabularies_ask_for_the_config(tmp_path: Path) -> None:
    sizes = PUBLISHED["ViT-B-32"]
    for change in ({"vision_cfg": sizes["vision_cfg"] | {"width": 800}}, {"text_cfg": sizes["text_cfg"] | {"vocab_size": 250112}}):
        with pytest.raises(DirectAlignError, match=r"put the checkpoint's open_clip_config\.json beside it"):
            clip_config(shapes_of(sizes | change), tmp_path / "w.pt", "reward", "gelu")


def test_the_config_beside_decides(clip_folder: Path, tmp_path: Path) -> None:
    file = write_open_clip(tmp_path, clip_folder)
    with pytest.raises(DirectAlignError, match=r"reward\.activation: gelu, but .*open_clip_config\.json says quick_gelu"):
        open_clip.describe(file, "reward", "gelu")
    told = json.loads((tmp_path / "open_clip_config.json").read_text())["model_cfg"]
    for change, complaint in (
        ({"vision_cfg": {"width": 32}}, "is of another model than weights.pt"),
        ({"vision_cfg": {"width": 16, "pool_type": "avg"}}, "vision_cfg sets pool_type, which a transformers CLIPModel has not"),
        ({"text_cfg": {"width": 16, "no_causal_mask": True}}, "text_cfg sets no_causal_mask"),
        ({"text_cfg": None}, "not the config of an open_clip model"),
    ):
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": told | change}))
        with pytest.raises(DirectAlignError, match=complaint):
            open_clip.describe(file, "reward")


@pytest.mark.parametrize("name", ["weights.pt", "open_clip_pytorch_model.bin"])
def test_a_reward_of_a_file_scores_as_its_transformers_folder(clip_folder: Path, tmp_path: Path, name: str) -> None:
    file = write_open_clip(tmp_path, clip_folder, name)
    settings = config.ClipConfig(path=str(file), processor=str(clip_folder))
    check_reward(settings)
    reward, folder = load_reward(settings), ClipReward.load(str(clip_folder))
    assert torch.allclose(reward.score(reward.encode(images()), PROMPTS), folder.score(folder.encode(images()), PROMPTS), atol=1e-6)


def test_half_precision_files_are_read_in_float32(clip_folder: Path, tmp_path: Path) -> None:
    file = write_open_clip(tmp_path, clip_folder)
    save_file({name: tensor.half() for name, tensor in open_clip_weights(clip_folder).items()}, tmp_path / "half.safetensors")
    whole, half = open_clip.load(file, "reward"), open_clip.load(tmp_path / "half.safetensors", "reward")
    assert half.dtype == torch.float32
    assert all(torch.allclose(tensor, whole.state_dict()[name], atol=1e-3) for name, tensor in half.state_dict().items())


def test_a_file_on_the_hub(clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_open_clip(tmp_path / "made", clip_folder, "HPS_v2.1_compressed.pt")
    settings = config.ClipConfig(path="maker/hps/HPS_v2.1_compressed.pt", processor=str(clip_folder))
    with download_hub() as served:
        served.publish("maker/hps", tmp_path / "made", other_dot_pt=b"unused")
        point_at(served.url, tmp_path / "cache", monkeypatch)
        check_reward(settings, online=True)
        assert served.fetched == []
        with pytest.raises(DirectAlignError, match=r"held\.path: maker/hps/absent\.pt: maker/hps has no file absent\.pt"):
            check_reward(config.ClipConfig(path="maker/hps/absent.pt", processor=str(clip_folder)), "held", online=True)
        reward = load_reward(settings)
        assert "other.pt" not in served.fetched
    folder = ClipReward.load(str(clip_folder))
    assert torch.allclose(reward.score(reward.encode(images()), PROMPTS), folder.score(folder.encode(images()), PROMPTS), atol=1e-6)


def test_gradient_reaches_the_pixels_and_weights_stay(clip_folder: Path, tmp_path: Path) -> None:
    reward = ClipReward.load(str(write_open_clip(tmp_path, clip_folder)), processor=str(clip_folder))
    before = {name: tensor.clone() for name, tensor in reward.model.state_dict().items()}
    reward.model.double()
    x = images().double().requires_grad_()
    reward.score(reward.encode(x), PROMPTS).sum().backward()
    assert x.grad is not None
    way = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ends = [reward.score(reward.encode(x.detach() + sign * 1e-5 * way), PROMPTS).sum() for sign in (1, -1)]
    assert torch.allclose((ends[0] - ends[1]) / 2e-5, (x.grad * way).sum(), rtol=1e-6, atol=1e-10)
    reward.model.float()
    assert all(torch.equal(tensor, before[name]) for name, tensor in reward.model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda w: w.pop("visual.ln_post.bias"), r"lacks visual\.ln_post\.bias"),
        (lambda w: w.pop("visual.transformer.resblocks.1.attn.in_proj_weight"), r"lacks visual\.transformer\.resblocks\.1\.attn\.in_proj_weight"),
        (lambda w: w.pop("text_projection"), "lacks or misshapes 'text_projection'"),
        (lambda w: w.pop("visual.conv1.weight"), r"holds no CLIP of open_clip \(no visual\.conv1\.weight\)"),
        (lambda w: w.update({"visual.transformer.resblocks.0.ls_1.gamma": torch.ones(16)}), r"has the unknown visual\.transformer\.resblocks\.0\.ls_1\.gamma"),
        (lambda w: w.update({"visual.proj": torch.ones(16, 9)}), r"has in another shape visual\.proj"),
        (lambda w: w.update({"visual.trunk.pos_embed": torch.ones(1)}), "holds a vision tower of timm"),
        (lambda w: w.update({"visual.layer1.0.conv1.weight": torch.ones(1)}), "holds a ResNet CLIP"),
        (lambda w: w.update({"text.transformer.embeddings.word_embeddings.weight": torch.ones(1)}), "holds a text tower of transformers"),
    ],
)
def test_other_weights_are_refused_by_name(clip_folder: Path, tmp_path: Path, change, complaint: str) -> None:
    file = write_open_clip(tmp_path, clip_folder)
    weights = open_clip_weights(clip_folder)
    change(weights)
    torch.save(weights, file)
    settings = config.ClipConfig(path=str(file), processor=str(clip_folder))
    for ask in (check_reward, load_reward):
        with pytest.raises(DirectAlignError, match=rf"^reward\.path: .*weights\.pt: {complaint}") as refused:
            ask(settings)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kept", [0, 10, 1000, -200])
@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_a_truncated_file_is_refused_by_name(clip_folder: Path, tmp_path: Path, kept: int, name: str) -> None:
    file = write_open_clip(tmp_path, clip_folder)
    if name.endswith("safetensors"):
        save_file(open_clip_weights(clip_folder), file := tmp_path / name)
    file.write_bytes(file.read_bytes()[:kept])
    for ask in (check_reward, load_reward):
        with pytest.raises(DirectAlignError, match=rf"members\.0\.path: .*{name}: not a complete file of weights"):
            ask(config.ClipConfig(path=str(file), processor=str(clip_folder)), key="members.0")


class Harmful:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_nothing_is_unpickled(clip_folder: Path, tmp_path: Path, protocol: str) -> None:
    file, traces = tmp_path / "weights.pt", tmp_path / "it_ran"
    content = {"state_dict": open_clip_weights(clip_folder), "model": Harmful(traces)}
    torch.save(content, file) if protocol == "torch" else file.write_bytes(pickle.dumps(content, protocol=2))
    for ask in (check_reward, load_reward):
        with pytest.raises(DirectAlignError, match=r"reward\.path: .*weights\.pt: (holds pickled objects, which are never run|not a complete file)"):
            ask(config.ClipConfig(path=str(file), processor=str(clip_folder)))
    assert not traces.exists()


def test_a_program_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    """OpenAI published its own files as TorchScript."""
    file = tmp_path / "ViT-L-14.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)
    with pytest.raises(DirectAlignError, match=r"ViT-L-14\.pt: holds a program \(TorchScript\)"):
        load_reward(config.ClipConfig(path=str(file), processor=str(clip_folder)))


def test_a_processor_is_asked_for_and_must_fit(clip_folder: Path, tmp_path: Path) -> None:
    file = write_open_clip(tmp_path / "made", clip_folder)
    for ask in (check_reward, load_reward):
        with pytest.raises(DirectAlignError, match=r"reward\.processor: missing, and .* beside the weights has no tokenizer\.json"):
            ask(config.ClipConfig(path=str(file)))
    other = tmp_path / "other"
    other.mkdir()
    for part in clip_folder.glob("*token*"):
        (other / part.name).symlink_to(part)
    settings = json.loads((clip_folder / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps(settings | {"crop_size": 24}))
    with pytest.raises(DirectAlignError, match=r"reward\.processor: its images are 24 x 24 and the model reads 32 x 32"):
        load_reward(config.ClipConfig(path=str(file), processor=str(other)))


def test_a_folder_brings_its_activation(clip_folder: Path) -> None:
    for ask in (check_reward, load_reward):
        with pytest.raises(DirectAlignError, match=r"reward\.activation: gelu, but the config\.json of"):
            ask(config.ClipConfig(path=str(clip_folder), activation="gelu"))
