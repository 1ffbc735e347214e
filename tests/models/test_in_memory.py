"""Pipelines of every architecture are aligned in memory and are whole again afterwards."""

import pytest
import torch
from cases import CASES, PLAIN
from diffusers import DDIMScheduler, EulerDiscreteScheduler, LCMScheduler
from library_calls import sources_of, write_edits

import directalign
from models.qwen_edit_calls import pictures
from tiny import SIZE

PROMPT = "a red star"
SHORT = {
    "data": {"batch_size": 1},
    "rollout": {"num_inference_steps": 3, "height": SIZE, "width": SIZE},
    "progress": False,
    "train": {"num_steps": 2, "learning_rate": 0.05},
}


CALLS = {"flux": {"max_sequence_length": 12}, "sana": {"use_resolution_binning": False}}


def contrast(images, prompts):
    return images.flatten(1).std(1)


def sampled(pipe, call=None):
    given = {"height": SIZE, "width": SIZE, "num_inference_steps": 3, "output_type": "pt"}
    seed = torch.Generator().manual_seed(3)
    return pipe(prompt=PROMPT, generator=seed, **given, **(call or {})).images[0]


def state(pipe):
    """Of what alignment changes inside, except the weights."""
    models = {name: part for name, part in pipe.components.items() if hasattr(part, "modules")}
    return {
        "device": {p.device for each in models.values() for p in each.parameters()},
        "dtype": {(name, p.dtype) for name, m in models.items() for p in m.parameters()},
        "gradients": {p.grad is not None for each in models.values() for p in each.parameters()},
        "training": {m.training for each in models.values() for m in each.modules()},
        "recomputes": {getattr(m, "gradient_checkpointing", False) for m in pipe.vae.modules()},
        "hooks": sum(len(m._forward_hooks) for each in models.values() for m in each.modules()),
        "strides": [p.stride() for p in pipe.vae.parameters()],
        "frozen": [p.requires_grad for p in pipe.vae.parameters()],
        "scheduler": (dict(pipe.scheduler.config), pipe.scheduler.num_inference_steps),
    }


@pytest.mark.parametrize(
    ("name", "tune"), [*((name, "lora") for name in PLAIN), ("flux", "full"), ("sd", "full")]
)
def test_the_same_pipeline_samples_other_images_and_nothing_else_changes(tmp_path, name, tune):
    case = CASES[name]
    pipe = case.pipeline(case.folder(tmp_path))
    part = getattr(pipe, "transformer", None) or pipe.unet
    call, prompts, more = CALLS.get(name), [PROMPT], SHORT
    if case.edits:
        edits = str(write_edits(tmp_path))
        prompts, more = None, {**SHORT, "data": {"edits": edits, "batch_size": 1}}
        size = {"max_area": SIZE**2, "_auto_resize": False, "max_sequence_length": 12}
        call = {"image": pictures(sources_of(SIZE, SIZE, 1))[0]}
        call |= {} if case.reads_sources else size
    # Under a LoRA weights need no gradient, and torch multiplies by one that does in other ways.
    part.requires_grad_(tune == "full")
    base, before = sampled(pipe, call), state(pipe)
    weights = {name: p.data_ptr() for name, p in part.named_parameters()}
    model = {"tune": tune, "gradient_checkpointing": True, "text_encoders": "offload"}
    aligned = directalign.align(pipe, contrast, prompts, model=model, **more)
    assert aligned is pipe and not torch.allclose(sampled(pipe, call), base, atol=1e-3)
    after = state(pipe)
    assert not part.is_gradient_checkpointing
    if tune == "full":
        assert before == after and {n: p.data_ptr() for n, p in part.named_parameters()} == weights
        return
    assert {**before, "dtype": 0} == {**after, "dtype": 0} and after["training"] == {False}
    assert pipe.get_active_adapters() == ["default"]
    pipe.disable_lora()
    assert torch.equal(sampled(pipe, call), base)
    pipe.enable_lora()
    file = directalign.save_lora(pipe, tmp_path / "saved")
    fresh = case.pipeline(tmp_path)
    fresh.load_lora_weights(file.parent, weight_name=file.name)
    assert torch.equal(sampled(fresh, call), sampled(pipe, call))


def test_bfloat16_pipelines_and_those_of_a_user_class_are_aligned(tmp_path):
    case = CASES["sd"]
    pipe = case.pipeline(case.folder(tmp_path))
    pipe.__class__ = type("MyPipeline", (type(pipe),), {})
    pipe.to(torch.bfloat16)
    pipe.vae.float()
    directalign.align(pipe, contrast, [PROMPT], **SHORT)
    assert pipe.unet.conv_in.weight.dtype == torch.bfloat16
    assert next(pipe.vae.parameters()).dtype == torch.float32


def test_a_scheduler_that_does_not_sample_as_the_run_does(tmp_path):
    """A solver on the same table is replaced during the run; one of another path is refused."""
    case = CASES["sd"]
    pipe = case.pipeline(case.folder(tmp_path / "sd"))
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    directalign.align(pipe, contrast, [PROMPT], **SHORT)
    assert isinstance(pipe.scheduler, EulerDiscreteScheduler)
    flow = CASES["flux"].pipeline(CASES["flux"].folder(tmp_path / "flux"))
    for wrong in (LCMScheduler, DDIMScheduler):
        flow.scheduler = wrong()
        remedy = r"pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config\("
        with pytest.raises(directalign.DirectAlignError, match=remedy):
            directalign.align(flow, contrast, [PROMPT], **SHORT)
        assert not getattr(flow.transformer, "peft_config", None)
