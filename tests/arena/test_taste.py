"""`directalign taste`: the commands of its tutorial with a voter of one taste, over HTTP."""

import io
import json
import re
import signal
from pathlib import Path

import pytest
import torch
import yaml
from arena_servers import running_command, vote
from PIL import Image, ImageStat
from typer.testing import CliRunner

from directalign import taste
from directalign.arena.session import open_arena
from directalign.cli import app
from directalign.config import RunConfig
from directalign.config.load import dump_run, load_run
from directalign.data.pairs import scan_pairs
from directalign.data.prompts import read_prompts
from directalign.evaluation import candidates
from directalign.evaluation.eval_prompts import read_prompt_set
from directalign.models import model_class
from directalign.types import DirectAlignError
from document_commands import command_lines

TUTORIAL = Path(__file__).parents[2] / "docs/tutorials/from_votes.md"
PROMPTS = [f"a {color} star on a gray background" for color in ("red", "blue", "pink", "cyan")]
SMALL = ["rollout.num_inference_steps=2", "rollout.embedded_guidance=1.0", "model.lora.rank=2"]
SMALL += ["train.num_steps=2", "train.learning_rate=1e-2", "train.global_batch_size=2"]
SETS = [word for each in SMALL for word in ("--set", each)]
HERE = {"my_model": "world:flux"}
PORT = ["--port", "0"]
FEW = ["--pairs", "9", "--compared", "3", *SETS]


def brightness(content: bytes) -> float:
    with Image.open(io.BytesIO(content)) as image:
        return sum(ImageStat.Stat(image).mean)


def answered(words: list[str], name: str, count: int) -> str:
    """What a command that opens a vote says at its end, after `count` answers of a voter who
    prefers bright images, and Ctrl-C."""
    with running_command(words) as server:
        with server.joined(name) as client:
            for number in range(count):
                task = client.get("/api/state").json()["next"][0]
                files = (client.get(f"/image/{token}").content for token in task["images"])
                left, right = map(brightness, files)
                vote(client, f"request-{number}", task["task"], "left" if left > right else "right")
        assert server.stop(signal.SIGINT) == 0
        assert server.process.stdout is not None
        return server.process.stdout.read()


def answer_all(this: taste.Round) -> None:
    """The votes of a round by another voter, without a server."""
    arena = open_arena(this / "votes.sqlite", [taste.make_candidates(this)])
    state = arena.state(voter := arena.join("Ben", "0" * 32))
    while state["next"]:
        task = state["next"][0]
        left, right = (brightness(arena.image(token) or b"") for token in task["images"])
        side = "left" if left > right else "right"
        state = arena.vote(voter, f"request {state['done']}", task["task"], side)
    arena.store.close()


def call(*words: str) -> str:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*words: str) -> str:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1 and result.output.count("directalign: ") == 1, result.output
    return result.output


def mean_brightness(pairs: Path, key: str) -> float:
    rows = [json.loads(line) for line in pairs.read_text("utf-8").splitlines()]
    found = [brightness((pairs.parent / row[key]).read_bytes()) for row in rows]
    return sum(found) / len(found)


def test_an_evening_of_two_rounds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("\n".join(PROMPTS), "utf-8")
    lines = [line[1:] for line in command_lines(TUTORIAL.read_text("utf-8")) if line[1] == "taste"]
    lines = [[HERE.get(word, word) for word in line] for line in lines]
    start, train, compare, again = lines[:4]

    said = answered([*start, *FEW, *PORT], "Ann", 3)
    assert "3 pairs are decided" in said and "next: directalign taste train taste" in said
    assert "3 pairs are decided, and a training needs 8" in refused(*train)
    images = {file: file.stat().st_mtime_ns for file in Path("taste").rglob("*.png")}
    assert len(images) == 18
    answer_all(taste.current(Path("taste")))  # keeps the images
    assert images == {file: file.stat().st_mtime_ns for file in images}
    assert "directalign train taste/recipe.yaml" in call(*train)
    pairs = Path("taste/round1/pairs/pairs.jsonl")
    assert mean_brightness(pairs, "chosen") > mean_brightness(pairs, "rejected")
    said = answered([*compare, *PORT], "Ann", 3)
    assert re.search(r"preferred in \d+\D+ of 3 votes \(95 % interval", said), said
    assert Path("taste/round1/results/results.html").is_file()

    assert again == ["taste", "start", "taste"]
    answer_all(taste.current(Path("taste")))
    call(*train)
    settings = yaml.safe_load(Path("taste/round2/run/run.yaml").read_text("utf-8"))
    assert settings["model"]["lora"]["init"] == "taste/round1/run"
    assert len(scan_pairs("taste/round2/pairs.jsonl").captions) == 18


def test_no_prompt_or_seed_is_voted_on_and_compared(tmp_path):
    folder = tmp_path / "taste"
    taste.start("world:flux", "world", folder, 5, 2, ["Oil painting"], overrides=SMALL)
    asked = [row for this in (1, 2) for row in taste.asked(taste.Round(folder, this))]
    held_out = read_prompts(folder / taste.HELD_OUT)
    assert not {row.prompt.removeprefix("Oil painting. ") for row in asked} & {*held_out}
    assert len({row.seed for row in asked}) == 20 and min(row.seed for row in asked) > 20_000
    first, second = asked[:2]
    assert second.prompt == f"Oil painting. {first.prompt}"


def test_what_cannot_begin_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("few.txt").write_text("\n".join(PROMPTS[:3]), "utf-8")
    begin = ["taste", "start", "world:flux", "--out", "new"]
    assert "3 prompts, of which a quarter is held out" in refused(*begin, "--prompts", "few.txt")
    assert "no prompts: give --prompts" in refused(*begin)
    full = "model.tune=full"
    assert "taste trains a LoRA" in refused(*begin, "--prompts", "world", "--set", full)
    assert "begin with directalign taste start" in refused("taste", "train", "new")
    for _ in range(2):  # the same command continues
        taste.start("world_srpo", "world", Path("new"), 5, 2)
    assert "other options" in refused(*begin, "--prompts", "world")
    assert "--pairs: new was begun with its own" in refused("taste", "start", "new", "--pairs", "7")
    assert "no round is trained yet" in refused("taste", "compare", "new")
    assert "0 pairs are decided" in refused("taste", "train", "new")


def started(folder: Path, source: str, *overrides: str) -> RunConfig:
    """The recipe of a folder that is begun."""
    taste.start(source, "world", folder, 5, 2, overrides=overrides)
    return load_run(folder / taste.RECIPE)


def recipe_file(file: Path, *overrides: str) -> str:
    file.write_text(dump_run(load_run("world_srpo", overrides)), "utf-8")
    return str(file)


def test_what_the_recipe_says_of_memory_is_kept(tmp_path, monkeypatch):
    large = started(tmp_path / "large", "flux_srpo_lora_24gb")
    assert large.evaluate.batch_size == 1
    assert started(tmp_path / "none", "flux_srpo_lora_24gb", "evaluate.batch_size=3")
    no_size = tmp_path / "no_size.yaml"
    no_size.write_text(
        "name: a\nmodel: {architecture: flux, path: owner/model}\n"
        "method: {name: srpo, form: absolute}\n"
        "rollout: {embedded_guidance: 3.5}\nreward: {name: clip, path: owner/clip}\n"
        "data: {prompts: photographs}\ntrain: {num_steps: 1, optimizer: adamw8bit}\n"
    )
    unsaid = started(tmp_path / "unsaid", str(no_size))
    assert (unsaid.evaluate.batch_size, unsaid.train.optimizer) == (1, "adamw8bit")
    assert started(tmp_path / "toy", "world:flux").evaluate.batch_size == 32
    sizes = list[int]()

    def asked_at_once(model, prompts, seeds, rollout, batch_size, sources):
        sizes.append(len(prompts))
        return torch.zeros(len(prompts), 3, 8, 8)

    monkeypatch.setattr(candidates, "generate", asked_at_once)
    monkeypatch.setattr(candidates, "load_run_model", lambda run, trained: "a model")
    taste.make_candidates(taste.current(tmp_path / "none"))
    assert sizes == [3, 3, 3, 1]


def refusal(folder: Path, source: str, *overrides: str) -> str:
    """The error of a source that cannot be begun with; nothing is written."""
    with pytest.raises(DirectAlignError) as error:
        started(folder, source, *overrides)
    assert not folder.exists()
    return str(error.value)


def test_a_recipe_that_begins_with_a_lora_is_refused(tmp_path):
    lora = ["model.tune=lora", "model.lora.init=runs/before"]
    recipe = recipe_file(tmp_path / "mine.yaml", *lora)
    assert f"{recipe}: model.lora.init: runs/before" in refusal(tmp_path / "new", recipe)
    assert "model.lora.init: runs/b" in refusal(tmp_path / "new", "world:flux", lora[1])


def test_a_run_is_to_be_exported_first(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    recipe_file(run / "run.yaml", "model.tune=lora")
    assert "directalign export" in (said := refusal(tmp_path / "new", str(run)))
    assert "--format folder --merge" in said


def test_a_model_is_guided_as_usual(tmp_path, monkeypatch):
    model = tmp_path / "model"
    (model / "transformer").mkdir(parents=True)
    (model / "transformer/config.json").write_text("{}", "utf-8")
    index = {"_class_name": "StableDiffusion3Pipeline"}
    (model / "model_index.json").write_text(json.dumps(index), "utf-8")
    usual = model_class("sd3").usual_cfg
    assert started(tmp_path / "usual", str(model)).rollout.cfg_scale == usual != 1
    assert started(tmp_path / "set", str(model), "rollout.cfg_scale=2").rollout.cfg_scale == 2

    def make(this):
        raise DirectAlignError("not made")

    monkeypatch.setattr(taste, "check_model_here", lambda *_, online: ("", ["it is unguided"]))
    monkeypatch.setattr(taste, "make_candidates", make)
    said = refused("taste", "start", str(tmp_path / "usual"))
    assert said.index("warning: it is unguided") < said.index("not made")


def test_a_prompt_of_two_lines_stays_one(tmp_path):
    rows = [json.dumps({"prompt": f"a star\n{number}"}) for number in range(8)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows), "utf-8")
    taste.start("world:flux", str(tmp_path / "prompts.jsonl"), tmp_path / "new", 2, 2)
    found = [row.prompt for row in read_prompt_set(tmp_path / "new" / taste.HELD_OUT)]
    assert len(found) == 2 and all(prompt.startswith("a star\n") for prompt in found)


@pytest.mark.parametrize("name", ["a: b #c", "[new]", "null", 'it"s ü\U0001f600'])
def test_a_folder_of_any_name_is_trained_in(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    folder = Path(name)
    taste.start("world:flux", "world", folder, 5, 2)
    this = taste.Round(folder, 2)
    (this / "run").mkdir(parents=True)
    (this / "run/run.yaml").touch()
    run = load_run(folder / taste.RECIPE, taste.prepare_training(this))
    assert run.data.pairs == str(this / "pairs.jsonl")
    assert run.model.lora.init == str(folder / "round1/run")


def test_a_model_that_edits_images_is_refused(tmp_path):
    recipe = tmp_path / "edits.yaml"
    model = "model: {architecture: flux_kontext, path: owner/model}\n"
    recipe.write_text(
        f"name: a\n{model}method: {{name: srpo, form: absolute}}\n"
        "rollout: {embedded_guidance: 3.5}\n"
        "reward: {name: clip, path: owner/clip}\ndata: {edits: edits.jsonl}\n"
        "train: {num_steps: 1}\n"
    )
    assert "edits images" in refusal(tmp_path / "new", str(recipe))


def test_a_round_in_training_takes_no_votes_and_says_its_pairs(tmp_path, monkeypatch):
    folder = tmp_path / "new"
    taste.start("world:flux", "world", folder, 5, 2)
    run = taste.current(folder) / "run"
    run.mkdir(parents=True)
    (run / "run.yaml").touch()
    assert "directalign taste train" in refused("taste", "start", str(folder))
    (run.parent / "pairs.jsonl").write_text("{}\n" * 9, "utf-8")
    monkeypatch.setattr("directalign.cli.taste.train_command", lambda *_: None)
    assert "9 pairs are decided" in call("taste", "train", str(folder))
