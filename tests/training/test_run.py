"""Whole runs: what they write, exact resumes, signals, kills, output folders, the lock."""

import errno
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import launching
import pytest
import torch
import train_stubs as stubs
from launching import exit_code, fork, records
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from train_stubs import nan_at, steps, stop_at

import tiny
from directalign import config
from directalign.evaluation.generate import sample_images
from directalign.export import export_run
from directalign.export.average import average_run
from directalign.io import atomic
from directalign.io.tensors import resize
from directalign.training import checkpoint, run_log
from directalign.training import run as train
from directalign.training.loop import Interrupted, stop_signals
from directalign.training.run import numerics
from directalign.types import DirectAlignError, NonFiniteError

WEIGHTS = "lora.safetensors"


@pytest.fixture
def run(tmp_path):
    return stubs.make_run(tmp_path / "prompts.txt")


def scalars(out: Path) -> dict[str, list[tuple[int, float]]]:
    board = EventAccumulator(str(out / "tensorboard")).Reload()
    names = [n for n in board.Tags()["scalars"] if not any(t in n for t in run_log.TIMINGS)]
    return {name: [(e.step, e.value) for e in board.Scalars(name)] for name in names}


def test_what_a_run_writes(tmp_path):
    run = stubs.make_run(tmp_path / "prompts.txt", warmup_steps=1, gradient_accumulation_steps=2)
    out = tmp_path / "out"
    model = stubs.start(run, out)
    names = {"tensorboard", "samples", "checkpoints", "run.yaml", "metrics.jsonl", WEIGHTS}
    assert {p.name for p in out.iterdir()} == names | {"summary.json"}
    grids = [run_log.grid_path(out, step) for step in (0, 3, 6)]
    assert sorted((out / "samples").glob("*.png")) == grids
    cells = {"prompts": stubs.PROMPTS[:8], "seeds": list(range(8)), "columns": 4}
    assert json.loads((out / "samples" / "samples.json").read_text()) == cells
    assert torch.equal(load_file(out / WEIGHTS)["base"], model.denoiser.base)
    assert steps(out, "step") == [1, 2, 3, 4, 5, 6] and steps(out, "evaluate") == [0, 2, 4, 6]

    record = next(r for r in run_log.read(out) if r["event"] == "step")
    assert set(record["losses"]) == {"denoise", "inversion"}
    assert record["loss"] == pytest.approx(sum(record["losses"].values()))
    assert record["learning_rate"] == 0.025 and record["grad_norm"] > 0 and record["reward"] < 0
    assert sum(row["n"] for row in record["levels"]["denoise"]) == 4
    assert set(record["phases"]) == {"forward", "backward", "update"}
    assert min(record["resources"][k] for k in ("images_per_second", "peak_memory_gib")) > 0
    assert record["resources"]["teraflops"] == pytest.approx(1e-3 / record["seconds"])
    assert sum(record["phases"].values()) <= record["seconds"]

    summary = json.loads((out / "summary.json").read_text())
    seconds = [r["seconds"] for r in run_log.read(out) if r["event"] == "step"]
    assert summary["align_seconds"] == pytest.approx(sum(seconds)) and summary["num_steps"] == 6
    assert (summary["before"]["step"], summary["after"]["step"]) == (0, 6)
    assert summary["before"]["photo_rate"]["n"] == 4 and summary["final"]["step"] == 6
    assert summary["trained_weights"] == 16 and summary["seed"] == 0
    assert summary["versions"]["torch"] == torch.__version__
    assert summary["machine"]["cores"] == os.cpu_count()


def test_evaluation_does_not_change_training(tmp_path):
    often, never = (
        stubs.make_run(tmp_path / "prompts.txt", sample_every=every) for every in (1, 0)
    )
    evaluate = never.evaluate.model_copy(update={"every": 0})
    never = never.model_copy(update={"evaluate": evaluate})
    ours, theirs = (stubs.start(r, tmp_path / n) for r, n in ((often, "a"), (never, "b")))
    assert torch.equal(ours.denoiser.base, theirs.denoiser.base)


@pytest.mark.parametrize(("tune", "stop"), [("full", 0), ("lora", 4)])
def test_a_signal_stops_after_the_step_and_resume_repeats_the_whole_run(tmp_path, tune, stop):
    settings = {"schedule": "cosine", "gradient_accumulation_steps": 2, "ema_decay": 0.8}
    run = stubs.make_run(tmp_path / "prompts.txt", tune=tune, **settings)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    stubs.start(run, whole)
    message = rf"stopped by SIGTERM after step {stop + 1} of 6; continue with --resume"
    with pytest.raises(Interrupted, match=message):
        stubs.start(run, broken, on_step=stop_at(stop))
    assert steps(broken, "step")[-1] == stop + 1 and not (broken / "summary.json").exists()
    stubs.start(run, broken, resume=True)
    assert (broken / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert records(broken) == records(whole) and scalars(broken) == scalars(whole)
    for grid in (whole / "samples").iterdir():
        assert (broken / "samples" / grid.name).read_bytes() == grid.read_bytes()
    average = load_file(broken / "checkpoints" / "step-000006" / "ema.safetensors")
    for name, tensor in load_file(broken / WEIGHTS).items():  # the EMA is exported
        assert torch.equal(tensor, average[f"ema.{name}"])
    files = broken / "metrics.jsonl", broken / WEIGHTS
    before = [file.read_bytes() for file in files]
    stubs.start(run, broken, resume=True)  # of a finished run: no change
    assert [file.read_bytes() for file in files] == before


def test_killed_at_random_moments_a_resumed_run_ends_with_the_same_bits(tmp_path):
    settings = {"num_steps": 12, "sample_every": 6, "ema_decay": 0.9}
    run = stubs.make_run(tmp_path / "prompts.txt", tune="lora", **settings)
    killed = launching.kill_and_resume(lambda out, go: stubs.start(run, out, go), tmp_path, 3)
    wanted = (tmp_path / "whole" / WEIGHTS).read_bytes()
    for out in killed:
        assert (out / WEIGHTS).read_bytes() == wanted, out
        assert not list((out / "checkpoints").glob(".partial-*"))


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_a_resume_removes_what_a_killed_process_left(tmp_path, tune, monkeypatch):
    run, out = stubs.make_run(tmp_path / "prompts.txt", tune=tune, keep_checkpoints=1), tmp_path
    save = stubs.StubModel.save

    def killed(model: Any, folder: Path) -> None:
        save(model, folder)
        (folder / ".tmp123").touch()
        raise SystemExit

    monkeypatch.setattr(stubs.StubModel, "save", killed)
    with pytest.raises(SystemExit):
        stubs.start(run, out / "out")
    monkeypatch.undo()
    out = out / "out"
    assert not (out / WEIGHTS).exists()
    for name in ("samples/.partial-1-a.png", ".partial-1-run.yaml"):
        (out / name).touch()
    shutil.copytree(out / "checkpoints/step-000006", out / "checkpoints/step-000004")
    (out / "checkpoints/.partial-step-000005").mkdir()
    stubs.start(run, out, resume=True)
    assert not [*out.rglob(".partial-*"), *out.rglob(".tmp*")] and (out / WEIGHTS).is_file()
    assert [path.name for path in checkpoint.all_of(out / "checkpoints")] == ["step-000006"]


@pytest.mark.parametrize("failed_step", [1, 5])
def test_records_after_the_checkpoint_are_dropped(tmp_path, failed_step, capsys):
    run, out = stubs.make_run(tmp_path / "prompts.txt", save_every=4), tmp_path / "out"
    stubs.start(run, tmp_path / "whole")
    with pytest.raises(NonFiniteError):
        stubs.start(run, out, spoil=nan_at(failed_step))
    with (out / "metrics.jsonl").open("a") as stream:
        stream.write('{"event": "step", "step": 6, "lo')
    assert steps(out, "step") == list(range(1, failed_step + 1))
    stubs.start(run, out, resume=True)
    assert ("no checkpoint in" in capsys.readouterr().out) == (failed_step == 1)
    assert records(out) == records(tmp_path / "whole")


@pytest.mark.parametrize("line", [b"", b"{}", b'{"event": "step", "step": "1"}'])
def test_a_bad_line_before_the_last_is_named_and_nothing_rewritten(tmp_path, run, line):
    out = tmp_path / "out"
    stubs.start(run, out)
    log = out / "metrics.jsonl"
    lines = log.read_bytes().split(b"\n")
    log.write_bytes(b"\n".join([lines[0], line, *lines[2:]]))
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    with pytest.raises(DirectAlignError, match=r"metrics\.jsonl:2: not a record"):
        stubs.start(run, out, resume=True)
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("lost", ["checkpoints", "metrics.jsonl"])
def test_a_run_that_lost_its_checkpoints_or_records_is_refused(tmp_path, run, lost):
    out = tmp_path / "out"
    stubs.start(run, out)
    for file in [*(out / lost).rglob("*.*"), out / lost]:
        file.unlink() if file.is_file() else shutil.rmtree(file)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    with pytest.raises(DirectAlignError, match=r"without checkpoints|lacks 6 of the 6 updates"):
        stubs.start(run, out, resume=True)
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before


def test_a_torn_sample_grid_is_made_again_or_left_out(tmp_path, run, capsys):
    out, names = tmp_path / "out", ("step-000003", "step-000006")
    stubs.start(run, out)
    whole = {name: run_log.grid_path(out, int(name[5:])).read_bytes() for name in names}
    for name, content in whole.items():
        (out / "samples" / f"{name}.png").write_bytes(content[: len(content) // 2])
    stubs.start(run, out, resume=True)
    assert "step-000003.png: damaged" in capsys.readouterr().out
    left = {path.stem: path.read_bytes() for path in (out / "samples").glob("step-*.png")}
    assert left["step-000006"] == whole["step-000006"] and "step-000003" not in left


def test_a_loss_that_is_not_finite_names_the_last_checkpoint(tmp_path, run):
    loss = r"step 4: the loss is nan \(branch inversion, sigma 0\.\d{4}, 0\.\d{4}\)"
    with pytest.raises(NonFiniteError, match=rf"{loss}.*last checkpoint is .*step-000002"):
        stubs.start(run, tmp_path / "out", spoil=nan_at(3, "inversion"))
    with pytest.raises(NonFiniteError, match=r"step 1: .*there is no checkpoint yet"):
        stubs.start(run, tmp_path / "other", spoil=lambda value, step, branch: value / 0)


@pytest.fixture(scope="module")
def saved_at_the_end(tmp_path_factory):
    """A run that writes no checkpoint on its way, and its recipe."""
    folder = tmp_path_factory.mktemp("whole")
    run = stubs.make_run(folder / "prompts.txt", save_every=0)
    stubs.start(run, folder / "whole")
    return run, folder / "whole"


@pytest.mark.parametrize(
    ("where", "error"),
    [("loss", KeyboardInterrupt), ("update", RuntimeError), ("evaluation", GeneratorExit)],
)
def test_any_exception_saves_the_finished_steps(
    saved_at_the_end, tmp_path, monkeypatch, where, error
):
    (run, whole), broken = saved_at_the_end, tmp_path / "broken"
    adam, measure = torch.optim.AdamW.step, stubs.StubEvaluator.measure
    calls: dict[str, int] = {}

    def fail_at(place: str, call: int) -> None:
        calls[place] = calls.get(place, 0) + 1
        if place == where and calls[place] == call:
            torch.set_grad_enabled(False)  # as a user's code may
            raise error("an error")

    def update(*args: Any) -> Any:
        result = adam(*args)
        fail_at("update", 4)  # the optimizer has stepped, which no checkpoint may contain
        return result

    def evaluate(*args: Any) -> Any:
        fail_at("evaluation", 3)
        torch.set_grad_enabled(False)
        return measure(*args)

    monkeypatch.setattr(torch.optim.AdamW, "step", update)
    monkeypatch.setattr(stubs.StubEvaluator, "measure", evaluate)
    with pytest.raises(error) as caught:
        stubs.start(run, broken, on_step=lambda step: fail_at("loss", 4))
    saved = [path.name for path in checkpoint.all_of(broken / "checkpoints")]
    assert saved == {"loss": ["step-000003"], "update": [], "evaluation": ["step-000004"]}[where]
    assert torch.is_grad_enabled()
    if saved:
        assert "is saved: continue with --resume" in f"{caught.value}{vars(caught.value)}"
    stubs.start(run, broken, resume=True)
    assert (broken / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


def test_deterministic_kernels_are_those_of_the_run_only(run, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    images = torch.rand(2, 3, 9, 40, requires_grad=True)
    found = {}
    for wanted in (False, True):
        settings = run.train.model_copy(update={"deterministic": wanted, "tf32": True})
        given = run.model_copy(update={"train": settings})
        with numerics(given, torch.device("cpu")):
            assert torch.are_deterministic_algorithms_enabled() is wanted
            assert torch.backends.cuda.flash_sdp_enabled() is not wanted
            assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) is wanted
            assert not torch.backends.cuda.matmul.allow_tf32  # on a CPU nothing changes
            for mode in ("bicubic", "bilinear"):
                resized = resize(images, (20, 14), mode)
                gradient = torch.autograd.grad(resized.square().sum(), images)[0]
                found.setdefault(mode, []).append((resized, gradient))
        assert not torch.are_deterministic_algorithms_enabled()
    for (plain, slope), (fixed, same_slope) in found.values():
        assert (plain - fixed).abs().max() < 1e-5 and (slope - same_slope).abs().max() < 1e-4


def test_a_full_disk_is_one_line(tmp_path, run, monkeypatch):
    def fail(code: int) -> None:
        def raises(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(sys.modules["directalign.training.run"], "_load", raises)

    fail(errno.ENOSPC)
    message = r"out: no space left on the disk; free some and continue with --resume"
    with pytest.raises(DirectAlignError, match=message):
        train(run, tmp_path / "out", resume=False)
    fail(errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        train(run, tmp_path / "other", resume=False)


# --- output folders -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "resume", "message"),
    [
        ("out", False, r"already holds a run \(run\.yaml\); add --resume"),
        ("empty", True, r"holds no run \(no run\.yaml\)"),
        ("file", False, "is a file; name a folder"),
        ("file/out", False, "cannot be created: Not a directory"),
    ],
)
def test_folders_that_cannot_be_used_stay_as_they_are(tmp_path, run, name, resume, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "out" / "run.yaml").write_text("")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DirectAlignError, match=message):
        stubs.start(run, tmp_path / name, resume=resume)
    assert sorted(tmp_path.rglob("*")) == before


def test_one_process_at_a_time_trains_in_a_folder(tmp_path):
    (reader, writer), use = os.pipe(), "training in it"

    def hold() -> None:
        with atomic.exclusive(tmp_path, use):
            os.write(writer, b"x")
            time.sleep(60)

    child = fork(hold)
    os.read(reader, 1)
    with pytest.raises(DirectAlignError, match=use), atomic.exclusive(tmp_path, use):
        pass
    os.kill(child, signal.SIGKILL)
    exit_code(child)
    with atomic.exclusive(tmp_path, use):
        pass


@pytest.fixture
def interruptible():
    """Python's own handler: a shell that starts a background job leaves SIGINT ignored."""
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, inherited)


def test_a_run_that_ended_while_another_loaded_is_not_overwritten(tmp_path, monkeypatch):
    run, module = tiny_recipe(tmp_path), sys.modules["directalign.training.run"]
    load, out = module._load, tmp_path / "out"

    def slow(*arguments: Any) -> Any:
        monkeypatch.undo()
        train(run, out, resume=False)
        return load(*arguments)

    monkeypatch.setattr(module, "_load", slow)
    with pytest.raises(DirectAlignError, match="already holds a run"):
        train(run.model_copy(update={"seed": 7}), out, resume=False)
    assert "seed: 0" in (out / "run.yaml").read_text()


@pytest.mark.usefixtures("interruptible")
def test_the_second_signal_has_the_previous_handler():
    previous = signal.getsignal(signal.SIGINT)
    with stop_signals() as received:
        os.kill(os.getpid(), signal.SIGINT)
        assert received == ["SIGINT"] and signal.getsignal(signal.SIGINT) is previous
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is previous


@pytest.mark.usefixtures("interruptible")
def test_any_number_of_signals_leaves_the_stopped_step_saved(tmp_path, run, monkeypatch):
    save = checkpoint.save

    def interrupted_save(*args: Any) -> Path:
        for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), other)
        return save(*args)

    monkeypatch.setattr(checkpoint, "save", interrupted_save)

    def watch(step: int) -> None:
        if step == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGHUP)

    with pytest.raises(Interrupted, match="SIGTERM after step 1 of 6"):
        stubs.start(run, tmp_path / "out", on_step=watch)
    assert (tmp_path / "out/checkpoints/step-000001").is_dir()


def test_with_nohup_a_closed_terminal_is_ignored():
    inherited = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals() as received:
            os.kill(os.getpid(), signal.SIGHUP)
            assert received == []
    finally:
        signal.signal(signal.SIGHUP, inherited)


# --- the base model -------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["vae", "scheduler"])
def test_a_base_that_changes_under_a_run_is_refused(tmp_path, part):
    run, out = tiny_recipe(tmp_path), tmp_path / "out"
    train(run, out, resume=False)
    uses = (
        lambda: train(run, out, resume=True),
        lambda: sample_images(out, ["a red star"], [0], tmp_path / "images"),
        lambda: export_run(out, "diffusers", tmp_path / "export"),
        lambda: average_run(out, tmp_path / "mean", last=1),
    )
    weights = next((tmp_path / "flux" / part).glob("*.safetensors" if part != "scheduler" else "*"))
    shutil.copy(weights, weights.with_name("model.fp16.safetensors"))  # another variant may come
    uses[0]()
    content = weights.read_bytes()
    changed = content[:-2] + bytes([content[-2] ^ 1]) + content[-1:]
    weights.write_bytes(content + b"\n" if part == "scheduler" else changed)
    for use in uses:
        with pytest.raises(DirectAlignError, match=r"another base model|are not those that"):
            use()
    assert not any((tmp_path / name).exists() for name in ("images", "export", "mean"))


# --- text encoders that are freed -----------------------------------------------------------------


def tiny_recipe(folder: Path, text_encoders: str = "keep") -> config.RunConfig:
    """Two steps of four prompts out of forty, on a tiny FLUX."""
    if not (folder / "flux").exists():
        tiny.write_flux(folder / "flux")
    nouns = [f"{color} {shape}" for color in ("red", "blue") for shape in ("star", "circle")]
    lines = [f"a {noun} .{'.' * place}" for place in range(10) for noun in nouns]
    (folder / "prompts.txt").write_text("\n".join(lines))
    (folder / "controls.txt").write_text("an oil painting")
    phrases = {"control_phrases": {"positive": ["Photo"]}, "kl_beta": 0.1}
    model = {"architecture": "flux", "path": str(folder / "flux"), "lora": {"rank": 2}}
    size = {"height": tiny.SIZE, "width": tiny.SIZE}
    train = {"num_steps": 2, "gradient_accumulation_steps": 2}
    given = {
        "name": "tiny",
        "model": {**model, "text_encoders": text_encoders},
        "reward": {"name": "pixels", "statistic": "redness"},
        "method": {"embedded_guidance": 3.5, "form": "absolute", "kl_to": "base_with_phrases"}
        | phrases,
        "rollout": {"num_inference_steps": 2, "embedded_guidance": 3.5, **size},
        "data": {"prompts": str(folder / "prompts.txt"), "batch_size": 2},
        "train": {**train, "sample_prompts": ["a green square"]},
        "evaluate": {
            "num_samples": 2,
            "num_samples_during": 1,
            "diversity_prompts": 1,
            "every": 2,
            "control_prompts": str(folder / "controls.txt"),
        },
    }
    return config.RunConfig.model_validate(given)


def test_a_run_with_freed_encoders_ends_with_the_same_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DIRECTALIGN_CACHE", str(tmp_path / "cache"))
    weights: dict[str, Any] = {}
    for mode in ("keep", "offload", "free"):
        folder = train(tiny_recipe(tmp_path, mode), tmp_path / mode, resume=False)
        weights[mode] = load_file(folder / WEIGHTS)
        assert (folder / "report.html").exists()
    assert "the text encoders are freed" in capsys.readouterr().out
    for mode in ("offload", "free"):
        for key, tensor in weights["keep"].items():
            assert (weights[mode][key] - tensor).abs().max() <= 1e-6
    assert list((tmp_path / "cache" / "embeddings").rglob("*.safetensors"))
