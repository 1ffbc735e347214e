"""Nothing needs POSIX: with its modules and functions hidden, as on Windows, every module is
imported, every command prints its help, and a run is trained, sampled and exported in folders with
spaces and other letters. Apple's GPU gets no float64.
"""

import subprocess
import sys

import pytest
import torch

from directalign.device import to_device, widest
from directalign.diffusion.path import DDPMTable, truncate_sigmas
from directalign.training import distributed

LIKE_WINDOWS = """
import builtins, os, signal, sys, types

MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog"}
NAMES = {
    "fork", "forkpty", "getuid", "geteuid", "getgid", "getegid", "sysconf", "killpg", "setsid",
    "mkfifo", "statvfs", "getpgid", "chown", "O_DIRECTORY", "O_NONBLOCK", "getloadavg", "nice",
    "sched_getaffinity", "uname", "SIGHUP", "SIGKILL", "SIGUSR1", "SIGALRM", "alarm", "pause",
}
original = builtins.__import__

def like_windows(module):
    made = types.ModuleType(module.__name__)
    vars(made).update({k: v for k, v in vars(module).items() if k not in NAMES})
    return made

changed = {"os": like_windows(os), "signal": like_windows(signal)}
changed["os"].name = "nt"

def imported(name, globals=None, *rest, **named):
    found = original(name, globals, *rest, **named)
    if not (globals or {}).get("__name__", "").startswith("directalign"):
        return found
    if name.partition(".")[0] in MODULES:
        raise ModuleNotFoundError(f"No module named {name!r}")
    return changed.get(name, found)

builtins.__import__ = imported

import pkgutil
import typer
from typer.testing import CliRunner
import directalign
from directalign.cli import app

for module in pkgutil.walk_packages(directalign.__path__, "directalign."):
    if module.name != "directalign.__main__":
        __import__(module.name)

def commands(command, *words):
    yield words
    for name, each in getattr(command, "commands", {}).items():
        yield from commands(each, *words, name)

def call(*words):
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, (words, result.output, result.exception)
    return result.stdout.splitlines()

for words in commands(typer.main.get_command(app)):
    call(*words, "--help")
prompts = "Ünï cödé/żółw 猫.txt"
os.makedirs("Ünï cödé")
with open(prompts, "w", encoding="utf-8") as file:
    file.write("a red star on a navy background\\n" * 4)
small = ["train.num_steps=2", "rollout.num_inference_steps=2", "evaluate.num_samples=2",
         "train.save_every=1", "method.anchor.reference_updates=1", f"data.prompts={prompts}",
         "evaluate.references=false", "train.sample_prompts=[a red star — 猫]", "name=żółw 猫"]
out = "Ünï cödé/the run"
call("train", "world_srpo_lora", "--out", out, *(f"--set={each}" for each in small))
call("sample", out, "--prompt", "a red star — 猫", "--out", "some images")
call("export", out, "--format", "diffusers")
call("report", out)
print("portable")
"""


def test_without_the_modules_and_functions_of_posix(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LIKE_WINDOWS], cwd=tmp_path, capture_output=True, encoding="utf-8"
    )
    assert done.stdout.endswith("portable\n"), done.stderr[-3000:]


def test_apples_gpu_is_taken_by_a_single_process(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert distributed._device(0) == torch.device("mps")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert distributed._device(0) == torch.device("cpu")


@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.float64), ("mps", torch.float32)])
def test_noise_levels_have_the_widest_dtype_of_the_device(device, dtype):
    assert widest(torch.device(device)) == dtype


def test_levels_keep_their_precision_where_they_can():
    levels = torch.tensor([0.1, 0.7], dtype=torch.float64)
    assert torch.equal(to_device(levels, torch.device("cpu")), levels)
    assert truncate_sigmas(levels, 1000).dtype == torch.float64
    table = DDPMTable(torch.linspace(0.99, 0.01, 50))
    assert table.timestep_of(levels).dtype == torch.float64
