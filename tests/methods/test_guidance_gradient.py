"""The gradient of classifier-free guidance with and without its negative pass."""

from dataclasses import replace

import pytest
import torch

import tiny
from directalign import config
from directalign.models import load_model
from directalign.types import Batch
from methods.by_hand import DIRECT, PROMPTS, make
from methods.toy import ToyFamily


def test_a_detached_negative_pass_leaves_the_gradient_of_the_prompt_times_the_scale(tmp_path):
    tiny.write_sd(tmp_path / "model")
    given = {"architecture": "sd", "path": str(tmp_path / "model"), "tune": "full"}
    model = load_model(config.ModelConfig.model_validate(given), "cpu")
    shape = (1, *model.latent_shape(*model.default_size))
    x_t = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    sigma, cond = torch.tensor([0.7], dtype=torch.float64), model.encode_prompt(["a red star"])
    weights = [each for each in model.denoiser.parameters() if each.requires_grad]

    def gradients(scale: float, detaches: bool):
        chosen = replace(cond.guided(None, scale), detach_negative=detaches)
        pred = model.predict(x_t, sigma, chosen)
        return pred, torch.autograd.grad(pred.sum(), [x_t, *weights], allow_unused=True)

    plain, full = gradients(3.0, False)
    pred, detached = gradients(3.0, True)
    _, prompt = gradients(1.0, False)
    assert torch.equal(pred, plain)
    for ours, alone in zip(detached, prompt, strict=True):
        assert (ours is None) == (alone is None)
        if ours is not None:
            torch.testing.assert_close(ours, 3 * alone, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(full[0], detached[0], rtol=1e-2)


class Watching(ToyFamily):
    def predict(self, x_t, sigma, cond):
        pred = super().predict(x_t, sigma, cond)
        self.seen = getattr(self, "seen", set())
        if pred.requires_grad:
            self.seen.add(cond.detach_negative)
        return pred


@pytest.mark.parametrize("name", DIRECT)
@pytest.mark.parametrize("detaches", [False, True])
def test_every_trained_call_of_every_method_is_told(name, detaches):
    family = Watching()
    form = {"form": "absolute"} if name == "srpo" else {}
    made = make(name, family, cfg_detach_negative=detaches, kl_beta=0.1, **form)
    for loss in made.losses(Batch(0, PROMPTS)):
        loss.value.backward()
    assert family.seen == {detaches}
