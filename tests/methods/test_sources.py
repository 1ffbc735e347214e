"""With an editing model, every call of every method has the source of its prompt."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from directalign import config
from directalign.diffusion.sampling import encode
from directalign.methods import METHODS, method_class
from directalign.types import Batch, Conditioning, DirectAlignError, Sources
from methods.toy import ToyFamily, ToyReward

LEVELS = (0.25, 0.75)
PROMPTS = tuple(f"level {level}" for level in LEVELS)
IMAGES = torch.tensor(LEVELS)[:, None, None, None].expand(2, 3, 4, 4)
SOURCES = Sources(IMAGES, torch.zeros(2, 1, 4, 4))
SETTINGS: dict[str, dict[str, Any]] = {
    "srpo": {"kl_beta": 0.1, "kl_to": "base_with_phrases"},
    "flow_grpo": {"group_size": 2, "updates_per_rollout": 2},
    "raft": {"candidates": 2},
    "diffusion_nft": {"group_size": 2},
    "awm": {"group_size": 2},
}


class EditingFamily(ToyFamily):
    """Notes the prompts of its calls and the levels of their sources."""

    edits_images = True

    def __init__(self) -> None:
        super().__init__()
        self.pairs = set[tuple[str, float]]()

    def encode_prompt(self, prompts: Sequence[str], sources: Any = None) -> Conditioning:
        assert len(prompts) == len(sources)
        return Conditioning(tuple(prompts), {}, {})

    def predict(self, x_t: Any, sigma: Any, cond: Conditioning) -> Any:
        assert cond.sources is not None
        levels = cond.sources.mean((1, 2, 3)).tolist()
        self.pairs |= set(zip(cond.prompts, levels, strict=True))
        return super().predict(x_t, sigma, cond)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("dpo", "python")])
def test_every_call_has_the_source_of_its_prompt(name):
    phrases = {"positive": ["Photo"], "negative": ["Render"]}
    given = {"name": name, "control_phrases": phrases, **SETTINGS.get(name, {})}
    settings = TypeAdapter(config.MethodConfig).validate_python(given)
    rollout = config.RolloutConfig(num_inference_steps=4)
    model = EditingFamily()
    method = method_class(name)(model, ToyReward(), settings, rollout)
    batch, later = (Batch(step, PROMPTS, seed=7, sources=SOURCES) for step in (0, 1))
    losses = [loss for each in (batch, later) for loss in method.losses(each)]
    assert losses and all(loss.value.isfinite() for loss in losses)
    assert {(prompt.split(". ")[-1], level) for prompt, level in model.pairs} == set(
        zip(PROMPTS, LEVELS, strict=True)
    )


def test_an_editing_model_needs_sources_and_another_takes_none():
    with pytest.raises(DirectAlignError, match=r"edits images, .*data\.edits"):
        encode(EditingFamily(), PROMPTS)
    with pytest.raises(DirectAlignError, match=r"takes no source images: use data\.prompts"):
        encode(ToyFamily(), PROMPTS, IMAGES)
