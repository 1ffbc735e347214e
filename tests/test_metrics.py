"""The registry of metrics: every entry is complete; names are read by prefix; judges come first."""

from __future__ import annotations

from directalign.metrics import METRICS, ROLES, by_role, drifting, judging, metric


def test_every_entry_is_whole():
    for name, each in METRICS.items():
        assert each.name == name and each.label and each.description.endswith(".")
        assert each.role in ROLES
        assert each.percent == each.description.startswith("Share ")


def test_a_name_that_is_not_registered_is_described_by_its_prefix():
    roles = {
        "held_out_second": ("held_out", 1),
        "held_out_second_pos": ("held_out", 0),
        "reward_light": ("trained", 1),
        "off_topic_reward": ("leakage", 0),
        "off_topic_held_out_second": ("leakage", 0),
        "style_cubist": ("judge", 0),
        "sgp_clip": ("sgp", 1),
        "something_new": ("drift", 0),
    }
    assert {name: (metric(name).role, metric(name).better) for name in roles} == roles
    assert metric("style_cubist").percent and metric("click_rate").percent
    assert metric("off_topic_reward").label == "Reward off topic"


def test_judges_come_before_held_out_rewards_before_what_is_trained_on():
    names = (
        "reward",
        "color_drift",
        "held_out_b",
        "held_out_b_pos",
        "content",
        "off_topic_content",
    )
    found = [metric(name) for name in names]
    assert [each.name for each in judging(found)] == ["content", "held_out_b", "reward"]
    assert [each.name for each in drifting(found)] == ["color_drift"]
    roles = [role for role, _ in by_role(found)]
    assert roles == ["judge", "held_out", "trained", "drift", "leakage"]
