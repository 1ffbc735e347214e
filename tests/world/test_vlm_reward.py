"""The second toy world's reward that reads its question: its training and its shipped weights."""

import pytest
import torch

from directalign.config import ClipConfig
from directalign.config.load import load_run
from directalign.rewards import load_reward
from directalign.toyworld import drawings
from tiny_world import short
from tools.build_toyworld import vlm_reward
from tools.build_toyworld.spec import SPECS

SPEC = SPECS["world2"]


def test_a_question_is_true_where_all_that_it_names_is_shown_and_names_no_held_out_pair():
    training = vlm_reward.Training(short("world2"))
    generator = torch.Generator().manual_seed(0)
    scenes = drawings.draw_scenes(400, generator)
    scenes.style[:100] = len(drawings.STYLES)  # no style
    texts, fits = vlm_reward.draw_questions(training, scenes, generator)
    assert not {text.rsplit(". ", 1)[-1] for text in texts} & set(drawings.held_out_captions())
    for row, caption in enumerate(scenes.captions()):
        words = (*drawings.STYLE_WORDS.values(), ())[int(scenes.style[row])]
        named = texts[row].replace(". ", " on ").split(" on ")
        assert bool(fits[row]) is ({*named} <= {*caption.split(" on "), *words})
    assert 0.3 <= float(fits.mean()) <= 0.6


@pytest.fixture(scope="module")
def reward():
    return load_reward(load_run("world2_vlm").reward)


def test_the_shipped_vlm_reads_backgrounds_and_looks_and_hardly_things(reward):
    """What it was trained for is at least .8 of every kind of answer; the study second_world tells
    how far it is from that."""
    answers = vlm_reward.measure_answers(reward, SPEC)
    assert answers["another background"] >= 0.95 and answers["wrong word"] >= 0.8
    assert answers["another thing"] <= 0.5 and answers["true word"] <= 0.8
    words = vlm_reward.measure_words(reward, SPEC)
    clip = vlm_reward.measure_words(load_reward(ClipConfig(path="world2:reward_tint")), SPEC)
    assert words["tint"] > 0 and words["share that cancels"] >= 0.7
    assert words["gap of tints"] >= 2 * clip["gap of tints"]
