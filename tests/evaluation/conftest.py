"""Tiny pipelines, made once, and a prompt file."""

import pytest

from tiny import write_flux, write_sd


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    return {"flux": write_flux(root / "flux"), "sd": write_sd(root / "sd")}


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a red star\na blue circle\na green square on a sandy background\n")
    return file
