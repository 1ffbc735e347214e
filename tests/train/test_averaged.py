"""The mean of a run's checkpoints, against the mean computed by hand from their files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import tiny
from directalign import config
from directalign.config.load import load_run
from directalign.export import average
from directalign.export.average import average_run
from directalign.export.lora_formats import DOWN, UP
from directalign.io import atomic
from directalign.training import run as train
from directalign.types import DirectAlignError

FILES = {"lora": "lora.safetensors", "full": "unet/diffusion_pytorch_model.safetensors"}
RANK, ALPHA = 2, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("averaged")


@pytest.fixture(scope="module")
def trained(folder: Path) -> Callable[[str], Path]:
    """A run of four updates whose last three checkpoints are kept; with all weights trained, their moving average too."""
    model = tiny.write_sd(folder / "model")
    (folder / "prompts.txt").write_text("a red star\na blue circle")

    @cache
    def run(tune: str) -> Path:
        given = {
            "name": tune,
            "model": {
                "architecture": "sd",
                "path": str(model),
                "tune": tune,
                "lora": {"rank": RANK, "alpha": ALPHA},
            },
            "reward": {"name": "pixels", "statistic": "redness"},
            "method": {"form": "absolute"},
            "rollout": {"num_inference_steps": 2},
            "data": {"prompts": str(folder / "prompts.txt")},
            "train": {
                "num_steps": 4,
                "learning_rate": 1e-2,
                "max_grad_norm": 1.0,
                "save_every": 1,
                "ema_decay": 0.5 if tune == "full" else None,
            },
            "evaluate": {"num_samples": 1},
        }
        return train(config.RunConfig.model_validate(given), folder / tune, resume=False)

    return run


def kept(run: Path, step: int, group: str = "weights") -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{group}."): tensor.double()
        for name, tensor in load_file(
            run / f"checkpoints/step-{step:06d}/{group}.safetensors"
        ).items()
    }


def merged(factors: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """scale·up·down by layer, of a checkpoint's factors or a file's."""
    plain = {
        name.replace(".default.", ".").removeprefix("unet."): tensor.double()
        for name, tensor in factors.items()
    }
    layers = [name.removesuffix(DOWN) for name in plain if name.endswith(DOWN)]
    return {
        layer: scale * plain[layer + UP].flatten(1) @ plain[layer + DOWN].flatten(1)
        for layer in layers
    }


def told(out: Path) -> dict[str, Any]:
    return json.loads((out / "summary.json").read_text())["averaged"]


@pytest.mark.parametrize(
    ("ema", "group", "share"), [(None, "ema", 0.0), (True, "ema", 0.25), (False, "weights", 0.25)]
)
def test_whole_weights(
    trained: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ema: bool | None,
    group: str,
    share: float,
) -> None:
    monkeypatch.setattr(average, "GROUP_BYTES", 40_000)  # in several bunches of several tensors
    run = trained("full")
    average_run(run, tmp_path / "out", last=3, ema=ema, base_share=share)
    base = load_file(run.parent / "model" / FILES["full"])
    each = [kept(run, step, group) for step in (2, 3, 4)]
    found = load_file(tmp_path / "out" / FILES["full"])
    assert found.keys() == base.keys() == each[0].keys()
    for name, tensor in found.items():
        by_hand = (1 - share) * (each[0][name] + each[1][name] + each[2][name]) / 3 + share * base[
            name
        ].double()
        assert (
            torch.equal(tensor, by_hand.float())
            or float((tensor.double() - by_hand).abs().max()) < 1e-7
        ), name
    assert told(tmp_path / "out") == {
        "run": str(run),
        "steps": [2, 3, 4],
        "weights": group,
        "base_share": share,
        "lora": None,
    }


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_mean_of_adapters_is_that_of_the_merged_weights(
    trained: Callable[[str], Path], tmp_path: Path, share: float
) -> None:
    run = trained("lora")
    average_run(run, tmp_path / "out", steps=[4, 2], base_share=share)
    found = merged(load_file(tmp_path / "out" / FILES["lora"]), 1.0)
    each = [merged(kept(run, step), ALPHA / RANK) for step in (2, 4)]
    assert found.keys() == each[0].keys()
    for layer, update in found.items():
        torch.testing.assert_close(
            update, (1 - share) * (each[0][layer] + each[1][layer]) / 2, rtol=1e-5, atol=1e-8
        )
    settings = load_run(tmp_path / "out" / "run.yaml")
    assert (settings.model.lora.rank, settings.model.lora.alpha) == (2 * RANK, 2 * RANK)
    assert settings.name == "lora, mean of steps 2, 4" + (
        ", 0.5 of the base model" if share else ""
    )
    assert told(tmp_path / "out")["lora"] | {"of_layer": ""} == {
        "trained_rank": RANK,
        "rank": 2 * RANK,
        "largest_relative_error": 0.0,
        "of_layer": "",
    }


def test_the_mean_of_one_is_what_the_run_left(
    trained: Callable[[str], Path], tmp_path: Path
) -> None:
    for tune in ("lora", "full"):
        average_run(trained(tune), tmp_path / tune, last=1)
        ours, theirs = (
            load_file(folder / FILES[tune]) for folder in (tmp_path / tune, trained(tune))
        )
        assert ours.keys() == theirs.keys() and all(
            torch.equal(ours[name], theirs[name]) for name in ours
        )


def test_a_lower_rank_tells_its_error(trained: Callable[[str], Path], tmp_path: Path) -> None:
    run = trained("lora")
    average_run(run, tmp_path / "exact", last=3)
    average_run(run, tmp_path / "out", last=3, rank=RANK)
    exact, found = (
        merged(load_file(tmp_path / name / FILES["lora"]), 1.0) for name in ("exact", "out")
    )
    errors = {
        layer: float((found[layer] - exact[layer]).norm() / exact[layer].norm()) for layer in exact
    }
    record = told(tmp_path / "out")["lora"]
    assert record["rank"] == load_run(tmp_path / "out" / "run.yaml").model.lora.rank == RANK
    assert 0 < record["largest_relative_error"] == pytest.approx(max(errors.values()), abs=1e-6)
    assert errors[record["of_layer"]] == pytest.approx(record["largest_relative_error"], abs=1e-6)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tune", "asked", "complaint"),
    [
        (
            "lora",
            {"steps": [1, 2]},
            r"--steps 1,2: no checkpoint of step 1: .*holds 2, 3, 4 \(train\.keep_checkpoints: 3",
        ),
        ("lora", {"last": 4}, r"--last 4: there are not as many checkpoints: .*holds 2, 3, 4"),
        ("lora", {"steps": [3, 3]}, "give each step once"),
        ("lora", {}, r"give one of --last K .*holds 2, 3, 4"),
        ("lora", {"last": 1, "steps": [4]}, "give one of --last K"),
        (
            "lora",
            {"last": 1, "ema": True},
            r"no moving average \(train\.ema_decay\); omit --ema",
        ),
        ("lora", {"last": 1, "base_share": 1.0}, "from 0, the mean itself, to less than 1"),
        ("lora", {"last": 2, "rank": 5}, "the mean of 2 has rank 4 and is exact with it"),
        ("full", {"last": 2, "rank": 1}, "trained all weights, not a LoRA"),
    ],
)
def test_what_cannot_be_averaged(
    trained: Callable[[str], Path], tmp_path: Path, tune: str, asked: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(DirectAlignError, match=complaint):
        average_run(trained(tune), tmp_path / "out", **asked)
    assert list(tmp_path.iterdir()) == []


def test_more_rank_than_a_layer_has_needs_a_lower_one(
    trained: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "directalign.export.average._updates",
        lambda *given: {"mid": average.LowRank(torch.ones(2, 3), torch.ones(9, 2))},
    )
    with pytest.raises(
        DirectAlignError,
        match=r"rank 4 exceeds the smaller side 3 of mid; add --rank 3 or less",
    ):
        average_run(trained("lora"), tmp_path / "out", last=2)


def test_a_folder_that_is_taken_or_no_run(trained: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(DirectAlignError, match="exists already"):
        average_run(trained("lora"), tmp_path, last=1)
    with pytest.raises(DirectAlignError, match=r"holds no run \(no run\.yaml\)"):
        average_run(tmp_path, tmp_path / "out", last=1)


@pytest.fixture
def copied(trained: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained("full"), tmp_path / "copied"))


def rewritten(checkpoint: Path, **changes: Any) -> None:
    """Its record changed and sealed again."""
    file = checkpoint / "record.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    (checkpoint / atomic.MANIFEST).unlink()
    files = atomic.sums(checkpoint)
    (checkpoint / atomic.MANIFEST).write_text(json.dumps({"files": files}))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"format": 1}, "in another format; average it with that version"),
        ({"architecture": "other"}, r"step-00000[34] are of different architectures"),
    ],
)
def test_checkpoints_of_another_kind(
    copied: Path, tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    rewritten(copied / "checkpoints" / "step-000003", **changes)
    with pytest.raises(DirectAlignError, match=complaint):
        average_run(copied, tmp_path / "out", last=2)


def test_a_base_of_another_architecture(copied: Path, tmp_path: Path) -> None:
    for step in (3, 4):
        rewritten(copied / "checkpoints" / f"step-00000{step}", architecture="other")
    with pytest.raises(
        DirectAlignError,
        match=r"is of another architecture than .*model; model\.path in run\.yaml now refers",
    ):
        average_run(copied, tmp_path / "out", last=2)
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint(copied: Path, tmp_path: Path) -> None:
    with (copied / "checkpoints" / "step-000003" / "ema.safetensors").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(
        DirectAlignError,
        match=r"step-000003: damaged \(ema\.safetensors has .* bytes instead of .*omit it",
    ):
        average_run(copied, tmp_path / "out", last=3)
    average_run(copied, tmp_path / "out", steps=[2, 4])
