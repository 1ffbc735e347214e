"""The wheel, installed into a fresh environment outside the repository: commands that a new user
types; the lock file and the Dockerfile fit the package.

The environment sees the libraries of this one through a .pth file; nothing is downloaded.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMALL = ["train.num_steps=2", "method.anchor.reference_updates=1"]
SMALL += ["rollout.num_inference_steps=2", "evaluate.num_samples=4", "evaluate.references=false"]
SMALL += ["train.sample_prompts=[a red star on a navy background]"]
COMMANDS = """
import sys
from directalign.cli import main

words = sys.argv[1:]
while words:
    line, words = words[: words.index(";")], words[words.index(";") + 1 :]
    sys.argv = ["directalign", *line]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel beside an empty folder: (folder, call of `directalign`, several in a process)."""
    folder = tmp_path_factory.mktemp("Ünïcode and spaces")
    source, here = folder / "source", folder / "empty"
    here.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "src"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--no-input"]
    offline = ["--no-deps", "--no-index"]
    command = [*pip, "wheel", *offline, "--no-build-isolation", "-w", folder, source]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = folder.glob("directalign-*.whl")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    subprocess.run([*pip, "--python", python, "install", *offline, wheel], check=True)
    packages = sysconfig.get_path("purelib", vars={"base": str(folder / "venv")})
    Path(packages, "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COV_"))}

    def run(*words: object) -> str:
        done = subprocess.run(
            words,
            cwd=here,
            env={**environment, "COLUMNS": "80"},
            capture_output=True,
            encoding="utf-8",
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def call(*words: str) -> str:
        return run(python.parent / "directalign", *words)

    def in_turn(*lines: list[str]) -> str:
        return run(python, "-c", COMMANDS, *(word for line in lines for word in (*line, ";")))

    return here, call, in_turn


def test_everything_beside_the_code_is_in_the_wheel(installed):
    here, *_ = installed
    (package,) = (here.parent / "venv").rglob("site-packages/directalign")
    own = ROOT / "src" / "directalign"
    files = {
        p.relative_to(own) for p in own.rglob("*") if p.is_file() and "__pycache__" not in str(p)
    }
    assert {f for f in files if not (package / f).is_file()} <= {Path("models/known/README.md")}


def test_recipes_are_listed_shown_and_copied(installed):
    here, call, _ = installed
    listed = call("recipes").splitlines()
    assert listed == call("recipes", "list").splitlines()
    assert any(line.startswith("flux_srpo_lora_24gb ") for line in listed)
    assert max(map(len, listed)) <= 80
    assert "path: world:flux" in call("recipes", "show", "world_srpo_lora")
    assert call("recipes", "copy", "flux_srpo_lora_24gb") == "flux_srpo_lora_24gb.yaml\n"
    copied = here / "flux_srpo_lora_24gb.yaml"
    assert copied.read_text("utf-8") == call("recipes", "show", "flux_srpo_lora_24gb")
    copied.unlink()


def test_a_new_user_checks_and_trains(installed):
    """In one process, which imports torch once."""
    here, _, in_turn = installed
    assert list(here.iterdir()) == []
    overrides = [f"--set={each}" for each in SMALL]
    train = ["train", "world_srpo_lora", "--out", "a", *overrides]
    assert "world_srpo can run" in in_turn(["check", "world_srpo"], train)
    assert (here / "a" / "lora.safetensors").is_file() and (here / "a" / "report.html").is_file()
    assert [path.name for path in here.iterdir()] == ["a"]


def test_the_lock_is_of_these_requirements():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project, lock = (
        tomllib.loads((ROOT / name).read_text(encoding="utf-8"))
        for name in ("pyproject.toml", "uv.lock")
    )
    (own,) = (each for each in lock["package"] if each["name"] == "directalign")
    locked = {
        (each["name"], each.get("specifier", ""), each.get("marker", ""))
        for each in own["metadata"]["requires-dist"]
    }
    extras = project["project"]["optional-dependencies"]
    required = {(*split(each), "") for each in project["project"]["dependencies"]}
    for extra, names in extras.items():
        required |= {(*split(each), f"extra == '{extra}'") for each in names}
    assert locked == required
    pinned = (ROOT / "constraints-cpu.txt").read_text().strip()
    assert pinned in {f"{each['name']}=={each.get('version')}" for each in lock["package"]}


def split(requirement: str) -> tuple[str, str]:
    name = re.match(r"[\w-]+", requirement)[0]
    return name.lower(), requirement.removeprefix(name)


def test_the_dockerfile_copies_what_exists():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = [name for line in re.findall(r"^COPY (.*) \S+$", text, re.M) for name in line.split()]
    assert copied and all((ROOT / name).exists() for name in copied)
    assert re.findall(r"^FROM \S+ AS (\S+)$", text, re.M) == ["base", "cpu", "cuda"]
