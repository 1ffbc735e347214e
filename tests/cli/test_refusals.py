"""Wrong inputs end in one line: exit code 1, nothing written, nothing large downloaded.

The line names the setting, the given value and the remedy; `check` prints the same one as `train`
where it can know. More mistakes in recipes: tests/config.
"""

import json
import shutil
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
from PIL import Image
from safetensors.torch import save_file
from typer.testing import Result

from directalign.io.atomic import exclusive
from directalign.toyworld.assets import resolve
from hub_stand_in import READER, hub_stand_in, point_at
from tiny import WRITERS, write_flux

pytestmark = pytest.mark.usefixtures("traced")
Command = Callable[..., Result]
HUB_ID = "maker/tiny-flux"


class Models(dict[str, Path]):
    """A tiny checkpoint of each architecture, read-only, written when it is first needed."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self.factory = factory

    def __missing__(self, name: str) -> Path:
        self[name] = WRITERS[name](self.factory.mktemp(name))
        return self[name]


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    return Models(tmp_path_factory)


@pytest.fixture
def hub(recipe, tmp_path, models, monkeypatch):
    """A hub with a tiny FLUX, without a token."""
    disable_progress_bars()  # as the command does
    with hub_stand_in() as served:
        served.publish(HUB_ID, models["flux"])
        point_at(served.url, tmp_path / "cache", monkeypatch)
        yield served
    enable_progress_bars()


def line_of(result: Result) -> str:
    """The one line that a command ended with."""
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1), result.output
    begun, *more = result.stdout.splitlines() or [""]  # `train` names its page first and last
    assert more in ([], [begun[begun.find("page: ") :]])
    assert result.stderr.startswith("directalign: ") and "unexpected" not in result.stderr
    return result.stderr


def files() -> list[Path]:
    return sorted(path for path in Path().rglob("*") if "cache" not in path.parts)


def refusal(command: Command, *words: object) -> str:
    """The line of a command, which left nothing."""
    before = files()
    line = line_of(command(*words))
    assert files() == before
    return line


def refused(command: Command, name: str, *overrides: str) -> str:
    """The line of `directalign NAME recipe.yaml`."""
    given = [f"--set={override}" for override in overrides]
    return refusal(command, name, "recipe.yaml", *given, "--out", "out/run")


def refused_alike(command: Command, *overrides: str) -> str:
    """The line of `train`, which is that of `check` too."""
    line = refused(command, "train", *overrides)
    assert refused(command, "check", *overrides) == line
    return line


# --- set-ups of the table -------------------------------------------------------------------------


def use(**sections: Any) -> None:
    """Replace sections of recipe.yaml."""
    given = yaml.safe_load(Path("recipe.yaml").read_text()) | sections
    Path("recipe.yaml").write_text(yaml.safe_dump(given))


def use_model(architecture: str, folder: Path) -> None:
    """Make recipe.yaml one for this model, with embedded guidance for FLUX only."""
    use(model={"architecture": architecture, "path": str(folder)})
    if architecture != "flux":
        use(rollout={"num_inference_steps": 2}, method={"form": "absolute"})


def edit(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def without_a_tokenizer(models: Models) -> None:
    Path(shutil.copytree(models["flux"], "model"), "tokenizer_2/tokenizer.json").unlink()


def original_flux(models: Models) -> None:
    mark = "double_blocks.0.img_attn.norm.key_norm.scale"
    save_file({mark: torch.zeros(4)}, "one.safetensors")


def pictures(models: Models) -> None:
    """Three images of 40x40."""
    Path("pictures").mkdir()
    for number in range(3):
        Image.new("RGB", (40, 40), "red").save(f"pictures/{number}.png")
        Path(f"pictures/{number}.txt").write_text("a red square")


def edits(models: Models) -> None:
    """An edit whose source is lost, as the data."""
    Path("edits.jsonl").write_text('{"prompt": "make it red", "source": "gone.png"}')
    use(data={"edits": "edits.jsonl"})


def text_encoder_as_reward(models: Models) -> None:
    encoder = shutil.copytree(models["flux"] / "text_encoder", "encoder")
    shutil.copytree(models["flux"] / "tokenizer", encoder, dirs_exist_ok=True)
    shutil.copy(resolve("world:reward") / "preprocessor_config.json", encoder)


def distilled_klein(models: Models) -> None:
    folder = Path(shutil.copytree(models["flux2_klein"], "klein"))
    edit(folder / "model_index.json", is_distilled=True)
    use_model("flux2_klein", folder)


def without_gradient(models: Any) -> None:
    """A method that needs no gradient, and a file that ends the process."""
    use(method={"name": "flow_grpo", "form": "absolute", "group_size": 2, "trained_steps": 1})
    Path("leaves.py").write_text("raise SystemExit(3)\n")


def pickled_model(models: Models) -> None:
    Path("model.ckpt").write_bytes(b"")


def sd3(models: Models) -> None:
    use_model("sd3", models["sd3"])


def flux_without_guidance(models: Models) -> None:
    use_model("flux", write_flux(Path("schnell"), guidance_embeds=False))


# --- the table ------------------------------------------------------------------------------------

SIZE = "36x32 does not fit: image size 36x32: both sides must be multiples of 8"
CASES = yaml.safe_load(Path(__file__).with_name("refusals.yaml").read_text("utf-8"))


@pytest.mark.parametrize(("setup", "overrides", "expected"), CASES, ids=[c[2] for c in CASES])
def test_train_and_check_refuse_alike(command, recipe, models, setup, overrides, expected):
    if setup is not None:
        globals()[setup](models)
    line = refused_alike(command, *(each.format_map(models) for each in overrides))
    assert expected in line


def test_sizes_and_guidance_of_an_architecture(command, recipe, models):
    use_model("qwen_image", models["qwen_image"])
    line = refused(command, "check", "rollout.sizes=[[32, 32], [36, 32]]")
    assert f"rollout.sizes: {SIZE}" in line
    line = refused(command, "check", "method.embedded_guidance=3.5")
    assert "method.embedded_guidance: 3.5, and this model has no input for it" in line


def test_what_depends_on_the_machine(command, recipe, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    line = refused(command, "check", "train.global_batch_size=6", "data.batch_size=2")
    assert "6 is not a multiple of data.batch_size 2 on 2 ranks (4)" in line
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    needs = "model.quantization: 4bit needs bitsandbytes"
    assert f"{needs}: pip install" in refused(command, "train", "model.quantization=4bit")
    checked = command("check", recipe, "--set", "model.quantization=4bit")
    assert checked.exit_code == 0 and f"warning: {needs}" in checked.stderr
    line = refused(command, "train", "model.attention=flash")
    assert "model.attention: flash cannot be used here" in line
    Path("busy").mkdir()
    with exclusive(Path("busy"), "training in it"):
        result = command("train", recipe, "--out", "busy")
    assert result.exit_code == 1
    assert "--out busy: another process is training in it" in result.stderr
    assert [path.name for path in Path("busy").iterdir() if path.name != ".lock"] == []


# --- the hub --------------------------------------------------------------------------------------


def test_repositories_that_are_gated_or_absent(command, hub, recipe):
    hub.publish("maker/judge", resolve("world:reward")).gated = True
    line = refused(command, "train", "reward={name: clip, path: maker/judge}")
    page = f"{hub.url}/maker/judge"
    assert f"reward.path: maker/judge: is gated: accept its licence at {page} in a" in line
    assert "run `hf auth login` or set HF_TOKEN" in line
    hub.repos[HUB_ID].gated = True
    assert f"model.path: {HUB_ID}: is gated" in refused(command, "train", f"model.path={HUB_ID}")
    assert "is gated" in refusal(command, "sample", HUB_ID, "--prompt", "a red star")
    line = refused(command, "train", "model.path=maker/nothing")
    assert "path: maker/nothing: no such folder here, and at http" in line
    assert "or run `hf auth login`" in line


def test_a_wrong_setting_is_refused_before_weights_are_downloaded(
    command, hub, recipe, models, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", READER)
    hub.publish("maker/sd3", models["sd3"])
    path = f"model.path={HUB_ID}"
    for overrides, expected in (
        ((path, "model.lora.targets=[too_q]"), "model.lora.targets: ['too_q'] fit no"),
        (("model.path=maker/sd3",), "holds a StableDiffusion3Pipeline"),
        ((path, "rollout.sizes=[[36, 32]]"), "rollout.sizes: 36x32 does not fit"),
    ):
        assert expected in refused(command, "train", *overrides)
    assert hub.fetched and not any(name.endswith(".safetensors") for name in hub.fetched)


def test_a_missing_run_is_not_searched_on_the_hub(command, hub):
    Path("runs").mkdir()
    for words in ("evaluate", "report", "sample --prompt x", "export --format diffusers"):
        line = refusal(command, *words.split(), "runs/gone")
        assert line.startswith("directalign: runs/gone: ") and "give " in line
    assert hub.fetched == []
    line = refusal(command, "sample", "one.safetensors", "--prompt", "a red star")
    assert "one.safetensors: a single file brings no configs" in line and "give a run" in line


# --- rewards that fail during a run ---------------------------------------------------------------


class Failing(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(500)
        self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(b"oh")

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_reward_that_fails_is_named(command, recipe):
    without_gradient(None)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Failing)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/score"
    line = refused(command, "train", f"reward={{name: remote, url: '{url}', retries: 0}}")
    server.shutdown()
    server.server_close()
    assert f"reward.url: {url}" in line
    assert "HTTP 500 Internal Server Error: incomplete response (IncompleteRead)" in line
    text = 'def raises(images, prompts):\n    raise KeyError("a name\\nin two lines")\n'
    Path("mine.py").write_text(text)
    reward = "--set=reward={name: python, path: 'mine.py:raises'}"
    line = line_of(command("train", recipe, reward))
    assert (
        "reward.path: mine.py:raises fails (KeyError: " in line and "correct the function" in line
    )


# --- `directalign reward` -------------------------------------------------------------------------

REWARD = ("--reward", "world:reward")
PAIR = ("--positive", "Photo", "--negative", "Render")
WORKS = {
    "phrases": (*REWARD, "--count", 4),
    "soft-prompts": (*REWARD, "--positive", "Photo"),
    "finetune": (*REWARD, "--images", "world:photo/cg", *PAIR),
    "bias-directions": (*REWARD, "--prompts", "world"),
}
FORMER = dict(zip(WORKS, ("words", "tokens", "listen", "directions"), strict=True))
BLANK = {"phrases": "--positive", "soft-prompts": "--negative", "finetune": "--positive"}


@pytest.mark.parametrize("name", WORKS)
def test_reward_commands_refuse_before_the_work(command, recipe, name):
    def line(*words: str, out: str = "made.safetensors") -> str:
        return refusal(command, "reward", name, *WORKS[name], *words, "--out", out)

    place = "prompts.txt/made.safetensors"
    found = line(out=place)
    assert f"--out {place}" in found and "prompts.txt is not a folder that you may write" in found
    if name != "phrases":
        Path("there.safetensors").write_text("mine")
        assert "there.safetensors exists already" in line(out="there.safetensors")
    if name in BLANK:
        assert f"{BLANK[name]}: phrase " in line(BLANK[name], "  ")
    else:
        assert "--keep-words: phrase " in line("--keep-words", " ", "--against", "CG render")
        Path("nothing").mkdir()
        words = ("reward", name, *REWARD, "--after", "nothing", "--out", "made.safetensors")
        found = refusal(command, *words)
        assert "--after nothing: holds neither images nor a run" in found
    if name in ("soft-prompts", "finetune"):
        found = line("--positive", "old.safetensors")
        assert "old.safetensors: is a file of learned tokens, and " in found
    renamed = refusal(command, FORMER[name], *WORKS[name])
    assert renamed == f"directalign: {FORMER[name]}: renamed to `directalign reward {name}`\n"
