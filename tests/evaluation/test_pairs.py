"""Pairs, samples and control prompts: fixed order, seeds used once, the noise of diffusers
pipelines."""

import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor

from directalign import config
from directalign.evaluation.eval_prompts import (
    CONTROL_GROUP,
    FIRST_SEED,
    PromptRow,
    batches,
    control_pairs,
    control_samples,
    fixed_pairs,
    named_styles,
    prompts_to_measure,
    read_control_prompts,
    samples_of_rows,
    seed_noise,
)
from directalign.toyworld.scenes import held_out_captions, train_captions
from directalign.types import DirectAlignError

ROWS = [PromptRow(letter, group="g", facts={"tag": letter}) for letter in "abcde"]


def test_the_toy_world_is_measured_on_all_captions():
    found, held_out = prompts_to_measure("world"), held_out_captions()
    assert sorted(found) == sorted(held_out + train_captions()) and len(set(found)) == 240
    first = set(fixed_pairs(found, 64).prompts)
    assert first & set(held_out) and first & set(train_captions())


def test_noise_is_that_of_the_pipelines():
    noise, generator = seed_noise([3, 4], (4, 8, 6)), torch.Generator().manual_seed(4)
    device, dtype = torch.device("cpu"), torch.float32
    expected = randn_tensor((1, 4, 8, 6), generator=generator, device=device, dtype=dtype)
    assert torch.equal(noise[1:], expected)
    assert torch.equal(seed_noise([4, 9, 3], (4, 8, 6))[[2, 0]], noise)


def test_control_prompts_of_the_toy_world_have_styles_that_no_positive_phrase_names():
    def styles(*positive: str) -> set[str]:
        phrases = config.ControlPhrases(positive=list(positive))
        return {prompt.split(". ")[0] for prompt in read_control_prompts("world", phrases)}

    photo = ["Realistic photo", "Natural lighting"]
    prompts = read_control_prompts("world", config.ControlPhrases(positive=photo))
    assert len(prompts) == 3 * 35 and set(prompts).isdisjoint(train_captions())
    assert {prompt.split(". ")[1] for prompt in prompts} == set(held_out_captions())
    assert styles(*photo) == {"CG render", "Oil painting", "Anime"}
    assert styles("Anime") == {"Realistic photo", "CG render", "Oil painting"}
    with pytest.raises(DirectAlignError, match=r"control_prompts: world: .*names every style"):
        styles("Realistic photo", "CG render", "Brush strokes", "Flat cartoon")
    assert named_styles(("Oil painting. a red star", "CG render. a ring")) == ("painting", "cg")
    pairs = control_pairs(["a", "b"], 5)
    assert len(pairs) == 5 and set(pairs.seeds).isdisjoint(range(FIRST_SEED, 2 * FIRST_SEED + 100))
    assert pairs.first(2) == control_pairs(["a", "b"], 2)


def test_every_prompt_has_its_seeds_and_no_seed_is_used_twice():
    samples = samples_of_rows(ROWS, None, 3)
    assert [sample.index for sample in samples] == list(range(15))
    assert len({sample.seed for sample in samples}) == 15
    prompts = [sample.prompt for sample in samples]
    assert prompts == [prompt for prompt in prompts[::3] for _ in range(3)]
    assert samples[0].facts["tag"] == samples[0].prompt
    some = [sample.prompt for sample in samples_of_rows(ROWS, 5, 2)]
    assert some == [prompts[0], prompts[0], prompts[3], prompts[3], prompts[6]]
    more = samples_of_rows(ROWS, 20, 2)  # too few prompts get more seeds
    assert len({sample.prompt for sample in more}) == 5


def test_batches_do_not_split_prompts_nor_mix_in_control_prompts(tmp_path):
    (tmp_path / "o.txt").write_text("soup\na map\n")
    samples = samples_of_rows(ROWS, None, 3)
    samples += control_samples(str(tmp_path / "o.txt"), config.ControlPhrases(), 15, 4)
    found = batches(samples, 7)
    assert [len(batch) for batch in found] == [6, 6, 3, 4]
    assert [sample for batch in found for sample in batch][:15] == samples[:15]
    assert {sample.group for sample in found[-1]} == {CONTROL_GROUP}
    assert len({sample.seed for sample in samples}) == 19
    assert [len(batch) for batch in batches(samples, 1)] == [3] * 5 + [2, 2]
