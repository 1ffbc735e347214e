"""The second toy world with weights of two training steps: complete folders of random models."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock
from PIL import Image

from directalign.toyworld.worlds import WORLDS
from tools.build_toyworld import build_world
from tools.build_toyworld.spec import SPECS, Spec, shortened

SHEET = WORLDS["world2"].assets / "drawings/sheet.png"


def short(name: str) -> Spec:
    """A world's build at two steps a training, without the packages of its drawings."""
    spec = shortened(SPECS[name])
    sheet: Callable[[Path], Image.Image] = lambda folder: Image.open(SHEET)  # noqa: E731
    return spec if spec.sheet is None else replace(spec, sheet=sheet)


@pytest.fixture(scope="session")
def tiny_assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped folders of a second world built from nothing at two steps a training, by the
    first of pytest's workers that needs them."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tiny_world2"
    with FileLock(folder.with_suffix(".lock")), pytest.MonkeyPatch.context() as patch:
        patch.setattr("tools.build_toyworld.reward.measure", lambda clip, tokenizer, spec: {})
        for name in ("measure_words", "measure_answers"):
            patch.setattr(f"tools.build_toyworld.vlm_reward.{name}", lambda reward, spec: {})
        if not (folder / "done").exists():
            build_world(folder / "state", short("world2"), target=folder / "assets2")
            (folder / "done").touch()
    return folder / "assets2"


@pytest.fixture
def world2(tiny_assets: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let world2: mean those folders."""
    monkeypatch.setenv("DIRECTALIGN_CACHE", str(tiny_assets.parent / "cache"))
    monkeypatch.setitem(WORLDS, "world2", replace(WORLDS["world2"], assets=tiny_assets))
    return tiny_assets
