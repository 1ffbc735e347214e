"""`directalign.align` on the toy world: equal to the command, stopped, repeated, refused."""

import json
import signal
import threading
from pathlib import Path

import diffusers
import pytest
import torch
import yaml
from accelerate.hooks import ModelHook, add_hook_to_module
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

import directalign
from directalign import config
from directalign.cli import app
from directalign.config.load import recipe_path
from directalign.models import in_memory
from directalign.toyworld.assets import resolve
from directalign.toyworld.scenes import train_captions
from directalign.training.run_log import TIMINGS, read

PROMPT = "a red star on a navy background"
KINDS = {"flux": diffusers.FluxPipeline, "sd": diffusers.StableDiffusionPipeline}
SETTINGS = {
    "progress": False,
    "rollout": {"num_inference_steps": 2},
    "data": {"batch_size": 2},
    "train": {"num_steps": 3, "learning_rate": 1e-2},
}
PHRASES = {"positive": ["Realistic photo"], "negative": ["CG render"]}
FEW = {"num_samples": 2, "num_samples_during": 2, "every": 0}
SWAP = {"block_swap": 1, "gradient_checkpointing": True}


def load(name="sd"):
    absent = {"safety_checker": None} if name == "sd" else {}
    pipe = KINDS[name].from_pretrained(resolve(f"world:{name}"), **absent)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sampled(pipe):
    seed = torch.Generator().manual_seed(1)
    call = {"height": 64, "width": 64, "output_type": "pt", "num_inference_steps": 2}
    if "Flux" in type(pipe).__name__:
        call |= {"guidance_scale": 1.0, "max_sequence_length": 16}
    return pipe(PROMPT, generator=seed, **call).images[0]


def weights(pipe, folder):
    return load_file(directalign.save_lora(pipe, folder))


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def redness(images, prompts):
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


@pytest.mark.parametrize(("name", "recipe"), [("flux", "world_srpo_lora"), ("sd", "world_sd")])
def test_it_equals_the_command_bit_for_bit(tmp_path, name, recipe):
    """Neither the folder nor the measurements of the command change the training."""
    sections = yaml.safe_load(recipe_path(recipe).read_text())
    sections["model"] = {"tune": "lora", "lora": {"rank": 4, "alpha": 8}}
    sections["train"] = {"num_steps": 3, "learning_rate": 1e-2, "sample_prompts": [PROMPT]}
    sections["method"]["anchor"]["reference_updates"] = 1
    sections["rollout"]["num_inference_steps"] = 3
    sections |= {"data": {"batch_size": 2}, "evaluate": FEW, "seed": 5}
    own = {"architecture": name, "path": f"world:{name}"}
    whole = {**sections, "model": own | sections["model"]}
    whole["data"] = {"batch_size": 2, "prompts": "world"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(whole))
    words = ["train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output

    pipe, base, records = load(name), sampled(load(name)), []
    del sections["evaluate"]
    before = set(tmp_path.rglob("*"))
    aligned = directalign.align(
        pipe, prompts=train_captions(), callbacks=[records.append], progress=False, **sections
    )
    assert aligned is pipe and set(tmp_path.rglob("*")) == before
    assert same(weights(pipe, tmp_path / "own"), load_file(tmp_path / "run" / "lora.safetensors"))
    steps = [record for record in read(tmp_path / "run") if record["event"] == "step"]
    for ours, theirs in zip(json.loads(json.dumps(records)), steps, strict=True):
        assert {**ours, **dict.fromkeys(TIMINGS)} == {**theirs, **dict.fromkeys(TIMINGS)}
    fresh = load(name)
    fresh.load_lora_weights(str(tmp_path / "run"), weight_name="lora.safetensors")
    assert (sampled(fresh) - sampled(pipe)).abs().max() < 1e-5
    assert (sampled(pipe) - base).abs().mean() > 1e-3


def test_a_run_folder_is_that_of_the_command_and_its_lora_that_of_the_pipeline(tmp_path):
    out, pipe = tmp_path / "run", load()
    directalign.align(
        pipe,
        config.ClipConfig(path="world:reward"),
        [PROMPT, "a blue ring on a white background"],
        control_phrases=PHRASES,
        out=out,
        evaluate=FEW,
        **{**SETTINGS, "train": {**SETTINGS["train"], "ema_decay": 0.5}},
    )
    assert same(weights(pipe, tmp_path / "own"), load_file(out / "lora.safetensors"))
    names = {"run.yaml", "metrics.jsonl", "summary.json", "report.html", "samples", "checkpoints"}
    assert names < {path.name for path in out.iterdir()}
    words = ["sample", str(out), "--prompt", PROMPT, "--out", str(tmp_path / "images")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    again = CliRunner().invoke(
        app, ["train", str(out / "run.yaml"), "--out", str(tmp_path / "again")]
    )
    assert again.exit_code == 0, again.output
    assert same(
        load_file(tmp_path / "again" / "lora.safetensors"), load_file(out / "lora.safetensors")
    )
    with pytest.raises(directalign.DirectAlignError, match="already holds a run"):
        directalign.align(load(), redness, [PROMPT], out=out, **SETTINGS)


def test_a_callback_stops_a_run_that_resume_continues(tmp_path):
    whole, broken, out = load(), load(), tmp_path / "run"
    given = {"reward": "world:reward", "prompts": [PROMPT], **SETTINGS, "evaluate": FEW}
    directalign.align(whole, out=tmp_path / "whole", **given)
    directalign.align(broken, out=out, callbacks=[lambda record: record["step"] == 2], **given)
    records = read(out)
    assert [record["step"] for record in records if record["event"] == "evaluate"] == [0, 2]
    stop = next(record for record in records if record["event"] == "stop")
    assert (stop["step"], stop["reason"]) == (2, "callback")
    assert "a callback ended the run" in (out / "report.html").read_text()
    assert same(weights(broken, tmp_path / "own"), load_file(out / "lora.safetensors"))
    resumed = load()
    directalign.align(resumed, out=out, resume=True, **given)
    assert same(weights(resumed, tmp_path / "a"), weights(whole, tmp_path / "b"))


def test_after_an_interruption_the_pipeline_has_the_steps_so_far(tmp_path):
    assert threading.current_thread() is threading.main_thread()
    stopped, short = load(), load()

    def interrupt(record):
        if record["step"] == 2:
            signal.raise_signal(signal.SIGINT)

    message = "stopped by SIGINT after step 2 of 3; the pipeline has the weights of that step"
    with pytest.raises(directalign.Interrupted, match=message):
        directalign.align(stopped, redness, [PROMPT], callbacks=[interrupt], **SETTINGS)
    settings = {**SETTINGS, "train": {**SETTINGS["train"], "num_steps": 2}}
    directalign.align(short, redness, [PROMPT], **settings)
    assert same(weights(stopped, tmp_path / "a"), weights(short, tmp_path / "b"))
    assert torch.equal(sampled(stopped), sampled(short))


def test_aligned_twice_it_continues(tmp_path):
    pipe = load()
    model = {"lora": {"rank": 4, "alpha": 4}}
    directalign.align(pipe, redness, [PROMPT], model=model, **SETTINGS)
    first, adapters = weights(pipe, tmp_path / "a"), len(pipe.unet.peft_config)
    pipe.set_adapters("default", 0.5)
    pipe.disable_lora()
    directalign.align(pipe, redness, [PROMPT], seed=1, **SETTINGS)  # rank and alpha are its own
    second = weights(pipe, tmp_path / "b")
    assert first.keys() == second.keys() and not same(first, second)
    assert len(pipe.unet.peft_config) == adapters == 1
    loaded = load()
    loaded.load_lora_weights(tmp_path / "a", weight_name="lora.safetensors", adapter_name="default")
    directalign.align(loaded, redness, [PROMPT], seed=1, **SETTINGS)
    assert same(weights(loaded, tmp_path / "c"), second)
    with pytest.raises(directalign.DirectAlignError, match="rank 4, alpha 4"):
        directalign.align(pipe, redness, [PROMPT], model={"lora": {"rank": 8}}, **SETTINGS)
    with pytest.raises(directalign.DirectAlignError, match="the pipeline has a LoRA"):
        directalign.align(pipe, redness, [PROMPT], model={"tune": "full"}, **SETTINGS)
    pipe.unload_lora_weights()
    directalign.align(pipe, redness, [PROMPT], model={"lora": {"rank": 8}}, **SETTINGS)


@pytest.mark.parametrize("adapter", [{"type": "lokr"}, {"use_dora": True}], ids=str)
def test_other_adapters_stay_continue_and_are_written(tmp_path, adapter):
    pipe, base = load(), sampled(load())
    model = {"lora": {"rank": 4, **adapter}}
    with pytest.raises(directalign.DirectAlignError, match="align: reward fails"):
        directalign.align(pipe, lambda images: 1, [PROMPT], model=model, **SETTINGS)
    assert torch.equal(sampled(pipe), base) and not getattr(pipe.unet, "peft_config", None)
    directalign.align(pipe, redness, [PROMPT], model=model, **SETTINGS)
    first, image = weights(pipe, tmp_path / "a"), sampled(pipe)
    assert (image - base).abs().max() > 1e-3
    fresh = load()
    fresh.unet.load_lora_adapter(tmp_path / "a", prefix="unet", weight_name="lora.safetensors")
    assert (sampled(fresh) - image).abs().max() < 1e-5
    directalign.align(pipe, redness, [PROMPT], **SETTINGS)
    second = weights(pipe, tmp_path / "b")
    assert first.keys() == second.keys() and not same(first, second)
    wrong = {"lora": {"type": "lora", "use_dora": False}}
    with pytest.raises(directalign.DirectAlignError, match="fused or of other layers or sizes"):
        directalign.align(pipe, redness, [PROMPT], model=wrong, **SETTINGS)


class TwoCalls:
    """Features once per batch of images, whatever the number of phrases."""

    def __init__(self):
        self.calls = {"encode": 0, "score": 0}

    def encode(self, images):
        self.calls["encode"] += 1
        return images.mean((2, 3))

    def score(self, features, prompts):
        self.calls["score"] += 1
        longer = torch.tensor([float(len(prompt)) for prompt in prompts])
        return (features[:, 0] - features[:, 1:].mean(1)) * longer


class Module(nn.Module):
    def __init__(self):
        super().__init__()
        self.factors = nn.Parameter(torch.tensor([1.0, -0.5, -0.5]))
        self.dropout = nn.Dropout(0.5)

    def forward(self, images, prompts):
        return (self.dropout(images.mean((2, 3))) * self.factors).sum(1)


def test_rewards_of_every_kind_are_one(tmp_path):
    """A section, a loaded reward, a function and a module with the same scores."""
    section, module = {"name": "pixels", "statistic": "redness"}, Module()
    rewards = (section, directalign.load_reward(section), redness, module)
    found = []
    for number, reward in enumerate(rewards):
        pipe = load()
        directalign.align(pipe, reward, [PROMPT], **SETTINGS)
        found.append(weights(pipe, tmp_path / str(number)))
    assert same(found[0], found[1])
    for other in found[2:]:
        assert all(torch.allclose(found[0][key], other[key], atol=2e-3) for key in other)
    assert module.training and module.factors.requires_grad and module.factors.grad is None
    both = TwoCalls()
    directalign.align(load(), both, [PROMPT], control_phrases=PHRASES, **SETTINGS)
    assert both.calls["score"] == 2 * both.calls["encode"] > 0
    scores = directalign.load_reward(both).score(torch.ones(1, 3), ["ab"])
    assert scores.tolist() == [0.0]


def test_a_black_box_gets_images_without_a_graph():
    seen = []

    def counts(images, prompts):
        seen.append((images.requires_grad, images.device.type))
        return [float(image.numpy().mean()) for image in images]

    method = {"name": "flow_grpo", "group_size": 2, "trained_steps": 1}
    directalign.align(load(), counts, [PROMPT], method=method, **SETTINGS)
    assert set(seen) == {(False, "cpu")}


def test_a_run_that_cannot_begin_leaves_the_pipeline_and_the_disk_as_they_were(tmp_path):
    pipe, out = load(), tmp_path / "run"
    base = sampled(pipe)
    broken = {"name": "clip", "path": str(tmp_path)}
    with pytest.raises(directalign.DirectAlignError, match=r"config\.json"):
        directalign.align(pipe, broken, [PROMPT], out=out, **SETTINGS)
    assert not out.exists() and torch.equal(sampled(pipe), base)
    assert not getattr(pipe.unet, "peft_config", None)
    assert all(parameter.requires_grad for parameter in pipe.unet.parameters())

    def fails(record):
        raise KeyError("of the user")

    with pytest.raises(KeyError, match="of the user"):
        directalign.align(pipe, redness, [PROMPT], callbacks=[fails], **SETTINGS)
    assert pipe.get_active_adapters() == ["default"]  # of one step


def offloaded(pipe):
    add_hook_to_module(pipe.vae, ModelHook())


def spread(pipe):
    pipe.text_encoder.to("meta")


REFUSED = {
    "no prompts": ({"prompts": []}, "align: prompts: empty; give at least one text"),
    "no text": ({"prompts": ["a", " "]}, r"align: prompts\[1\]: ' ' is no text"),
    "no list": ({"prompts": "absent.txt"}, "absent.txt: "),
    "a key": ({"train": {"num_stepz": 3}}, "align: train.num_stepz: unknown key; did you mean"),
    "a section": ({"learning_rate": 1e-4}, "did you mean 'train.learning_rate'"),
    "a value": ({"train": {"num_steps": "3"}}, 'align: train.num_steps: got "3"'),
    "an object": ({"trackers": {"wandb": object()}}, "align: only text, numbers, lists and dicts"),
    "a method": ({"method": "spro"}, "align: method: name 'spro' is none of"),
    "guidance": ({"rollout": {"embedded_guidance": 3.5}}, "SD has no input for it"),
    "a dtype": ({"model": {"dtype": "bfloat16"}}, "model.dtype: bfloat16, and the pipeline is"),
    "free": ({"model": {"text_encoders": "free"}}, "the pipeline needs them afterwards"),
    "swap": ({"model": SWAP}, "block_swap: the pipeline is on its device: remove it, or train"),
    "layers": ({"model": {"lora": {"targets": ["x"]}}}, "model.lora.targets: "),
    "resume": ({"resume": True}, "resume: give the folder of the run in out"),
    "no section": ({"model": "flux"}, "align: model: 'flux' is no section: give a dict"),
    "another model": ({"model": {"architecture": "flux"}}, "flux: not of this pipeline"),
    "a class": ({"reward": TwoCalls}, "TwoCalls is a class; give an instance"),
    "a number": ({"reward": 3}, "align: reward: 3 is none"),
    "no gradient": ({"reward": lambda i, p: i.detach().mean((1, 2, 3))}, "with a gradient"),
    "no scores": ({"reward": lambda images, prompts: None}, "a list or tensor of 2 numbers"),
    "a reward that fails": ({"reward": lambda images: 1}, "align: reward fails"),
    "meta": ({"reward": Module().to("meta")}, "its weights are on meta and the pipeline is on cpu"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_one_line(case):
    changes, message = REFUSED[case]
    pipe, base = load(), dict(reward=redness, prompts=[PROMPT], **SETTINGS)
    with pytest.raises(directalign.DirectAlignError, match=message) as caught:
        directalign.align(pipe, **{**base, **changes})
    assert "\n" not in str(caught.value) and not getattr(pipe.unet, "peft_config", None)


def half(pipe):
    pipe.to(torch.float16)


def mixed(pipe):
    pipe.text_encoder.to(torch.bfloat16)


def taken(pipe):
    pipe.unet.add_adapter(diffusers_lora(), adapter_name="style")


def diffusers_lora():
    from peft import LoraConfig

    return LoraConfig(r=2, target_modules=["to_q"])


PIPELINES = {
    half: "pipe.unet: float16 weights cannot be trained: pipe.to",
    mixed: "pipe.text_encoder: is torch.bfloat16 beside a unet of torch.float32",
    offloaded: "pipe.vae: is offloaded or placed by a device map",
    spread: "text_encoder on meta",
    taken: "has the adapters style",
}


@pytest.mark.parametrize("change", PIPELINES, ids=lambda change: change.__name__)
def test_a_pipeline_that_cannot_be_trained_is_refused(change):
    pipe = load()
    change(pipe)
    with pytest.raises(directalign.DirectAlignError, match=PIPELINES[change]):
        directalign.align(pipe, redness, [PROMPT], **SETTINGS)


def test_other_objects_and_pipelines_are_refused(tmp_path):
    with pytest.raises(directalign.DirectAlignError, match="a loaded pipeline is needed"):
        in_memory.source_of("black-forest-labs/FLUX.1-dev")
    pipe = load()
    other = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components)
    with pytest.raises(directalign.DirectAlignError, match="Img2ImgPipeline is not supported"):
        directalign.align(other, redness, [PROMPT])
    built = diffusers.StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    with pytest.raises(directalign.DirectAlignError, match="where it was loaded from"):
        directalign.align(built, redness, [PROMPT], out=tmp_path / "run", **SETTINGS)
    with pytest.raises(directalign.DirectAlignError, match="has no LoRA of align"):
        directalign.save_lora(pipe, tmp_path / "lora")
    assert not Path(tmp_path / "run").exists()
