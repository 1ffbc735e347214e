"""Rewards in the estimate: of every kind, what is held and what a call takes equal the real reward's, and what is not known is doubted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from memory_runs import a_run
from pydantic import TypeAdapter
from safetensors.torch import load_file
from torch import Tensor, nn

from directalign import config, memory
from directalign.config import RunConfig
from directalign.memory.architecture import model_architecture
from directalign.memory.judge_parts import found
from directalign.memory.judges import Judge, panel
from directalign.memory.judging import Judged, judging, layers_of, reading, score, with_layers
from directalign.memory.live import Piece, measured
from directalign.memory.weightless import in_shapes_alone, residents, shapes
from directalign.rewards import load_reward
from directalign.rewards.hpsv3 import QUESTION
from directalign.types import DirectAlignError
from recorded_rewards import write_aesthetic, write_image_reward
from tiny import tiny_sd  # noqa: F401 (fixture)
from tiny_clip import clip_folder  # noqa: F401 (fixture)
from tiny_open_clip import write_open_clip
from tiny_siglip import siglip_folder  # noqa: F401 (fixture)
from tiny_vlm import MODELS, write_vlm

CPU = memory.Place("the CPU", 10**12, is_gpu=False)
FIXTURES = Path(__file__).parents[1] / "fixtures"
PHRASED = {"form": "relative", "words": {"positive": ["Real"], "negative": ["Flat"]}}
Settings = dict[str, dict[str, Any]]
KINDS = ["clip", "open_clip", "siglip", "image_reward", "linear", "improved", "v2_5", "mps", *MODELS, "vlm_16", "hpsv3", "hpsv3_16"]
TRACED = ["siglip", "image_reward", "improved", "v2_5", "qwen2_vl", "qwen2_5_vl", "hpsv3"]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory, clip_folder: Path, siglip_folder: Path) -> Settings:  # noqa: F811
    """A tiny reward of each kind, as a recipe names it."""
    folder = tmp_path_factory.mktemp("kinds")
    weights, reader = write_image_reward(folder)
    heads = {name: write_aesthetic(folder, name) for name in ("linear", "improved", "v2_5")}
    vlms = {kind: {"name": "vlm", "path": str(write_vlm(folder / kind, kind)), "dtype": "float32"} for kind in MODELS}
    hpsv3 = {"name": "hpsv3", "path": str(FIXTURES / "hpsv3" / "HPSv3.safetensors"), "processor": str(FIXTURES / "hpsv3" / "processor")}
    return {
        "clip": {"name": "clip", "path": str(clip_folder)},
        "open_clip": {"name": "clip", "path": str(write_open_clip(folder, clip_folder)), "processor": str(clip_folder)},
        "siglip": {"name": "siglip", "path": str(siglip_folder)},
        "image_reward": {"name": "image_reward", "path": str(weights), "processor": str(reader)},
        **{name: {"name": "aesthetic", "path": str(head), "backbone": str(backbone)} for name, (head, backbone) in heads.items()},
        "mps": {"name": "mps", "path": str(FIXTURES / "mps" / "mps.safetensors"), "processor": str(FIXTURES / "mps")},
        **vlms,
        "vlm_16": vlms["qwen2_5_vl"] | {"dtype": "bfloat16"},
        "hpsv3": hpsv3 | {"dtype": "float32"},
        "hpsv3_16": hpsv3,
    }


def real(reward: dict[str, Any]) -> Any:
    """The reward of a recipe's section, loaded."""
    return load_reward(TypeAdapter(config.SingleRewardConfig).validate_python(reward))


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what needs no trace."""
    monkeypatch.setattr("directalign.memory.phases.passing", lambda subject: dict.fromkeys(memory.PHASES, 0))
    monkeypatch.setattr("directalign.memory.phases.says", lambda subject: "")


def with_reward(folder: Path, reward: dict[str, Any], method: dict[str, Any] | None = None, **held_out: dict[str, Any]) -> RunConfig:
    given = a_run("sd", folder).model_dump()
    given["evaluate"] |= {"rewards": held_out}
    return RunConfig.model_validate(given | {"reward": reward, "method": given["method"] | (method or {})})


def mixture(*rewards: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {"name": "mix", "members": [{"label": f"m{place}", "reward": each} for place, each in enumerate(rewards)], **settings}


def judge_of(folder: Path, reward: dict[str, Any], method: dict[str, Any] | None = None) -> Judge:
    (judge,) = panel(with_reward(folder, reward, method)).judges
    return judge


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "mps"])
def test_what_is_held_is_what_the_real_reward_holds(kinds: Settings, tiny_sd: Path, kind: str) -> None:  # noqa: F811
    judge, reward = judge_of(tiny_sd, kinds[kind]), real(kinds[kind])
    parameters = [*reward.model.parameters(), *(reward.head.parameters() if hasattr(reward, "head") else ())]
    assert judge.held == sum(parameter.numel() * parameter.itemsize for parameter in parameters)


def test_mps_is_its_clip_and_its_cross_model(kinds: Settings) -> None:
    stored = {name: tensor for name, tensor in load_file(kinds["mps"]["path"]).items() if not name.endswith(("position_ids", "inv_freq"))}
    part = found(config.MpsConfig(**kinds["mps"]), "reward").part
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == shapes(part)


@pytest.mark.parametrize("kind", TRACED)
def test_a_call_in_shapes_takes_what_the_real_reward_takes(kinds: Settings, tiny_sd: Path, kind: str) -> None:  # noqa: F811
    """Of two images under two phrasings, with the gradient back to them."""
    reads = kind not in ("improved", "v2_5")
    judge, reward = judge_of(tiny_sd, kinds[kind], PHRASED if reads else None), real(kinds[kind])
    images, texts = torch.rand(2, 3, 32, 32, requires_grad=True), ["Real. a star", "Flat. a star"][: judge.texts]
    reward.score(reward.encode(images.detach()), ["Flat. a star"] * 2)  # phrases are read once and kept
    if judge.kind in ("vlm", "hpsv3"):
        judge = replace(judge, tokens=_tokens(reward, images))

    def call() -> Tensor:
        features = reward.encode(images)
        return torch.stack([reward.score(features, [text] * 2).sum() for text in texts]).sum()

    resident = [images, *residents(reward.model), *(residents(reward.head) if hasattr(reward, "head") else ())]
    call()
    assert _near(in_shapes(judge), measured(call, resident)) < 0.1


def _tokens(reward: Any, images: Tensor) -> int:
    question = QUESTION if reward.name == "hpsv3" else reward.settings.question
    seen = reward.encode(images.detach()).tokens.shape[1]
    return reward.chat.tokenize([question.replace("{prompt}", "Real. a star")], seen).ids.shape[1] - seen


def _near(traced: Piece, taken: Piece) -> float:
    return max(abs(getattr(traced, name) / getattr(taken, name) - 1) for name in ("forward", "kept", "backward"))


def in_shapes(judge: Judge, size: tuple[int, int] = (32, 32)) -> Piece:
    network = judge.network()
    with in_shapes_alone(nn.ModuleList([network])):
        images = torch.empty(2, 3, *size, requires_grad=True)
    return measured(lambda: score(judge, network, images), [*residents(network), images])


def test_a_language_model_is_told_by_a_few_of_its_layers(kinds: Settings, tiny_sd: Path) -> None:  # noqa: F811
    judge = judge_of(tiny_sd, kinds["qwen2_vl"], PHRASED)
    deep = replace(judge, part=with_layers(judge.part, {"vision": 5, "text": 6}))
    assert layers_of(deep.part) == {"vision": 5, "text": 6}
    told, taken = reading(deep, 2, (32, 32), True), in_shapes(deep)
    assert told.kept == pytest.approx(taken.kept, rel=0.01)
    assert taken.backward <= told.backward * 1.01 and told.backward == pytest.approx(taken.backward, rel=0.15)
    assert reading(replace(deep, recompute=True), 2, (32, 32), True).kept < told.kept / 2


def test_members_add_up_unless_gradients_are_balanced(kinds: Settings, tiny_sd: Path) -> None:  # noqa: F811
    """Of three rewards all graphs are kept at once, or one at a time; a language model is counted in either way."""
    three = panel(with_reward(tiny_sd, mixture(kinds["clip"], kinds["siglip"], kinds["qwen2_vl"]), PHRASED)).trained_on
    vae = vae_of(tiny_sd)
    latents, size = (1, 4, 16, 16), (32, 32)
    none = judging(Judged(vae, torch.float32, False), latents, True)
    each = [judging(Judged(vae, torch.float32, False, (one,), size=size), latents, True) for one in three]
    together, balanced = (judging(Judged(vae, torch.float32, False, three, one_by_one, size), latents, True) for one_by_one in (False, True))
    added = none.kept + sum(one.kept - none.kept for one in each)
    assert together.kept == pytest.approx(added, rel=0.02)
    assert balanced.kept < none.kept + 0.5 * (added - none.kept)


@pytest.mark.usefixtures("untraced")
def test_every_reward_has_its_row(kinds: Settings, tiny_sd: Path) -> None:  # noqa: F811
    pixels, remote = {"name": "pixels", "statistic": "redness"}, {"name": "remote", "url": "http://localhost:1/"}
    run = with_reward(tiny_sd, mixture(kinds["clip"], pixels, kinds["vlm_16"]), {"form": "absolute"}, other=kinds["siglip"], far=remote)
    found = memory.estimate(run, CPU)
    rows = {row.part: max(row.sizes.values()) for row in found.rows}
    each = {judge.label: judge.held for judge in panel(run).judges}
    assert set(each) == {"reward m0", "reward m2", "held out other"} and each.items() <= rows.items()
    assert found.doubts == ()


def test_phrasings_are_those_of_the_form(kinds: Settings, tiny_sd: Path) -> None:  # noqa: F811
    words = {"positive": ["Real", "Natural"], "negative": ["Flat"]}
    forms = {("absolute", "average"): 2, ("absolute", "cycle"): 1, ("relative", "cycle"): 2, ("relative", "average"): 3, ("anchored", "average"): 4}
    for (form, order), texts in forms.items():
        assert judge_of(tiny_sd, kinds["image_reward"], {"form": form, "words": {**words, "order": order}}).texts == texts, form
    assert judge_of(tiny_sd, kinds["image_reward"]).texts == 1


class TestWhatIsNotHere:
    def test_it_is_known_by_its_name_or_doubted(self, tiny_sd: Path) -> None:  # noqa: F811
        known = {
            0.986e9: {"name": "clip", "path": "xswu/HPSv2/HPS_v2.1_compressed.pt"},
            0.878e9: {"name": "siglip", "path": "google/siglip-so400m-patch14-384"},
            0.446e9: {"name": "image_reward", "path": "zai-org/ImageReward/ImageReward.pt"},
            0.430e9: {"name": "aesthetic", "path": "owner/name/aesthetic_predictor_v2_5.pth", "backbone": "google/siglip-so400m-patch14-384"},
            0.305e9: {"name": "aesthetic", "path": "owner/name/head.pth", "backbone": "openai/clip-vit-large-patch14"},
            1.105e9: {"name": "mps", "path": "owner/name/mps.safetensors", "processor": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"},
            3.755e9: {"name": "vlm", "path": "Qwen/Qwen2.5-VL-3B-Instruct"},
            7.750e9: {"name": "hpsv3", "path": "MizzenAI/HPSv3/HPSv3.safetensors", "processor": "Qwen/Qwen2-VL-7B-Instruct"},
        }
        for numbers, reward in known.items():
            assert judge_of(tiny_sd, reward).count == pytest.approx(numbers, rel=2e-3), reward
            assert panel(with_reward(tiny_sd, reward)).doubts == (), reward
        for reward in ({"name": "siglip", "path": "a/b"}, {"name": "vlm", "path": "a/b"}, {"name": "clip", "path": "maker/model/weights.bin"}):
            (doubt,) = panel(with_reward(tiny_sd, reward)).doubts
            assert doubt.startswith(f"reward.path: {reward['path']} is not downloaded yet and not known here: figures are those of "), doubt

    def test_a_file_or_a_model_of_another_kind_is_an_error(self, tiny_sd: Path, siglip_folder: Path) -> None:  # noqa: F811
        for reward, said in (
            ({"name": "clip", "path": "/nowhere/weights.pt"}, r"reward\.path: /nowhere/weights\.pt: no such file"),
            ({"name": "clip", "path": str(siglip_folder)}, "holds a siglip model, and this reward needs a transformers CLIPModel"),
            ({"name": "siglip", "path": "yuvalkirstain/PickScore_v1"}, "is a model of clip, and this reward needs one of siglip"),
        ):
            with pytest.raises(DirectAlignError, match=said):
                panel(with_reward(tiny_sd, reward))

    def test_a_function_with_a_gradient_is_doubted_and_a_black_box_is_not(self, tiny_sd: Path) -> None:  # noqa: F811
        function = {"name": "python", "path": "judge.py:score"}
        assert panel(with_reward(tiny_sd, function)).doubts == ()
        with_gradient = with_reward(tiny_sd, {**function, "differentiable": True}, held=function)
        assert panel(with_gradient).doubts == ("reward: memory of reward python is not in the estimate",)


def vae_of(folder: Path) -> Any:
    return model_architecture(config.ModelConfig(family="sd", path=str(folder))).parts["vae"]
