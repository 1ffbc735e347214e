"""Control words measured: planted rewards whose answers are known, the embedded reward whose words
are known, and the setting that follows."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from directalign import config
from directalign.config.load import load_run
from directalign.methods.objective_math import absolute_relative
from directalign.reward_analysis import (
    COMMON,
    MAX_LENGTH,
    candidate_sides,
    candidates_file,
    checked_phrases,
)
from directalign.reward_analysis.images import PROBES, Examples, load_examples
from directalign.reward_analysis.phrases import (
    AT_REST,
    EncodedImages,
    PhraseTable,
    analyze_phrases,
    anchor_tolerance,
    choose_phrases,
    encode_examples,
    preserving_ratio,
    settings_for,
    usable_phrases,
)
from directalign.reward_analysis.phrases_report import (
    ReportSource,
    as_override,
    as_yaml,
    ramp,
    recipes,
    to_json,
    write_report,
)
from directalign.rewards import load_reward
from directalign.rewards.clip import ClipReward
from directalign.types import DirectAlignError

PHOTO, OTHERS = ("Realistic photo", "Natural lighting"), ("CG render", "Oil painting", "Anime")
RECIPE = "world_srpo"
COUNT = 24


GREYS = {"Light": 1.0, "Dark": -1.0}
"""What the planted reward pays for grey under a phrase."""


class PlantedReward:
    """Features are (grey, redness). Redness pays 1 under every phrase, grey pays 1 under Light, −1
    under Dark; a caption pays where it is the image's own.

    "Rust" is a word that pays redness twice, "Shout" one that drowns the caption.
    """

    name, reads_prompt, differentiable = "planted", True, True

    def encode(self, images: Tensor) -> Tensor:
        return torch.stack(
            [images.mean((1, 2, 3)), (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2))], 1
        )

    def score(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.stack(
            [self._one(*row, text) for row, text in zip(features.tolist(), prompts, strict=True)]
        )

    def _one(self, grey: float, red: float, text: str) -> Tensor:
        phrase, _, caption = text.rpartition(". ")
        own = 1.0 if caption == ("light thing" if round(grey, 6) > 0.5 else "dark thing") else 0.0
        content = own * (0.5 if phrase == "Shout" else 1.0)
        return torch.tensor(
            GREYS.get(phrase, 0.0) * grey + red * (2 if phrase == "Rust" else 1) + content
        )


def planted(wanted: Sequence[float], unwanted: Sequence[float], paired: bool = True) -> PhraseTable:
    """Grey images of these values, captioned by which half they lie in."""

    def images(values: Sequence[float]) -> Tensor:
        return torch.tensor(values)[:, None, None, None].expand(len(values), 3, 8, 8).clone()

    prompts = [
        tuple("light thing" if value > 0.5 else "dark thing" for value in values)
        for values in (wanted, unwanted)
    ]
    reward = PlantedReward()
    return PhraseTable(
        reward,
        encode_examples(reward, Examples(images(wanted), images(unwanted), *prompts, paired)),
    )


@pytest.fixture(scope="module")
def world() -> PhraseTable:
    reward = ClipReward.load("world:reward")
    return PhraseTable(
        reward, encode_examples(reward, load_examples("world", "--images", count=COUNT))
    )


# --- numbers --------------------------------------------------------------------------------------


def test_lift_gap_and_content_of_planted_words():
    table = planted([0.9, 0.4, 0.8], [0.6, 0.1, 0.5 + 1e-4])
    light, shout = table.phrase("Light"), table.phrase("Shout")
    assert (
        light.lift.value == pytest.approx(0.3, abs=1e-3)
        and light.lift.is_clear
        and light.content == pytest.approx(1)
    )
    assert table.phrase("Dark").lift.value == pytest.approx(-0.3, abs=1e-3)
    assert shout.content == pytest.approx(0.5) and not shout.lift.is_clear
    assert ["disturbs" in warning for warning in shout.warnings(None, 3)] == [False, True]
    pair = table.pair(["Light"], ["Dark"])
    assert (
        pair.gap.value == pytest.approx(0.6, abs=1e-3)
        and pair.content == pytest.approx(0)
        and pair.cosine is None
    )
    assert table.pair(["Light", "Other"], ["Dark"]).gap.value == pytest.approx(
        0.45, abs=1e-3
    )  # the mean of both sides


def test_a_bias_that_both_phrases_pay_cancels_and_one_that_one_pays_stays():
    table = planted([0.8, 0.9, 0.7], [0.6, 0.7, 0.55])
    both, one = (
        table.pair(["Light"], ["Dark"]).probes["red tint"],
        table.pair(["Rust"], ["Dark"]).probes["red tint"],
    )
    assert both.absolute == pytest.approx(0.15, abs=0.01) and both.cancelled == pytest.approx(
        1, abs=0.01
    )
    assert one.relative == pytest.approx(both.absolute, rel=0.05)
    assert any(
        "red tint remains in the difference" in warning
        for warning in table.pair(["Rust"], ["Dark"]).warnings
    )
    assert not any("red tint" in warning for warning in table.pair(["Light"], ["Dark"]).warnings)


def test_swapped_signs_and_words_that_say_nothing_are_told():
    table = planted([0.8, 0.9, 0.7], [0.6, 0.7, 0.55])
    assert any(
        "swap the two sides" in warning for warning in table.pair(["Dark"], ["Light"]).warnings
    )
    assert any(
        "does not separate wanted from unwanted" in warning
        for warning in table.pair(["Foo"], ["Bar"]).warnings
    )
    assert (
        choose_phrases(table, ["Foo"], ["Bar"]) is None
        and choose_phrases(table, [], ["Dark"]) is None
    )
    found = analyze_phrases(table.reward, table.encoded, ["Foo"], ["Bar"])
    assert found.suggestion is None and found.warnings[0].startswith("nothing to suggest")


def test_a_reward_without_text_features_gets_words_but_no_ramp(tmp_path):
    table = planted([0.8, 0.9, 0.7], [0.6, 0.7, 0.55], paired=False)
    found = settings_for(table, ["Light"], ["Dark"])
    assert (found.mu, found.tolerance, recipes(found)) == (None, None, {})
    assert analyze_phrases(table.reward, table.encoded, ["Light"], ["Dark"]).suggestion is not None


def test_probes_change_what_they_are_named_after():
    grey = torch.full((1, 3, 64, 64), 0.4)
    grey[..., ::2] += 0.2
    changed = {name: probe(grey) for name, probe in PROBES.items()}
    assert (
        changed["red tint"].mean((0, 2, 3)).argmax() == 0
        and changed["green tint"].mean((0, 2, 3)).argmax() == 1
    )
    assert (
        changed["purple tint"].mean((0, 2, 3)).argmin() == 1
        and changed["brightness"].mean() > grey.mean() + 0.09
    )
    assert changed["blur"].std() < grey.std() < changed["sharpening"].std()
    assert torch.allclose(changed["saturation"], grey)  # grey has no colour to raise
    assert all(
        image.min() >= 0 and image.max() <= 1 and image.shape == grey.shape
        for image in changed.values()
    )


def test_too_few_images_and_rewards_without_a_text_side_are_refused():
    with pytest.raises(DirectAlignError, match="1 wanted and 3 unwanted"):
        planted([0.8], [0.6, 0.7, 0.5])
    reward = load_reward(config.PixelStatisticsConfig(statistic="redness"))
    with pytest.raises(DirectAlignError, match="ignores prompts"):
        analyze_phrases(
            reward,
            encode_examples(reward, load_examples("world", "--images", count=2)),
            ["a"],
            ["b"],
        )


# --- geometry and setting -------------------------------------------------------------------------


def unit(seed: int, rows: int = 6) -> Tensor:
    return F.normalize(
        torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed)).double(), dim=-1
    )


def test_at_the_holding_weight_a_step_uphill_leaves_the_plain_score_alone():
    plain, images = F.normalize(unit(0) + 3, dim=-1), F.normalize(unit(1) + 2, dim=-1)
    pos, neg = (
        F.normalize(plain + 0.3 * unit(2) + 0.6 * images, dim=-1),
        F.normalize(plain + 0.3 * unit(3), dim=-1),
    )
    mu = preserving_ratio(pos, neg, plain, images)
    assert mu > 0

    def gained(weight: float, step: float = 1e-6) -> float:
        """Change of the mean plain score when unit images take a step along weight·mean +
        difference."""
        uphill = weight * (pos + neg) / 2 + (pos - neg)
        moved = F.normalize(images + step * uphill, dim=-1)
        return ((moved - images) * plain).sum(-1).mean().item() / step

    assert gained(mu) == pytest.approx(0, abs=1e-5)
    assert gained(mu + 0.1) > 1e-3 and gained(mu - 0.1) < -1e-3


def test_words_that_pull_against_the_prompt_have_no_weight_that_holds_it():
    plain = unit(0)
    with pytest.raises(DirectAlignError, match="reduce the score of the prompt"):
        preserving_ratio(-plain, -plain, plain, unit(1))


def test_a_ramp_begins_at_no_absolute_weight_and_ends_at_twice_the_mean():
    ends = ramp(0.3)
    low, high = (
        absolute_relative(ends["k_pos"][end], ends["k_neg"][end])
        for end in ("low_noise", "high_noise")
    )
    assert low == pytest.approx((0.0, 1.0)) and high == pytest.approx((0.6, 1.0))


def test_tolerance_is_where_the_anchor_rests_at_a_hundredth_of_what_content_is_worth():
    found = anchor_tolerance(0.8, 0.3)
    assert found == pytest.approx(AT_REST * 0.8 / 0.3, rel=0.05)  # two digits
    assert anchor_tolerance(8.0, 0.3) == pytest.approx(10 * found, rel=0.05)
    assert anchor_tolerance(None, 0.3) is None and anchor_tolerance(0.8, 0.0) is None


def test_the_tolerance_that_is_known_to_work_comes_out_for_the_embedded_reward(world):
    found = settings_for(world, PHOTO, OTHERS)
    assert 0.02 <= found.tolerance <= 0.05 and 0.2 < found.mu < 0.45
    assert found.probe_shares["red tint"] < 0.2
    reward = ClipReward.load("world:reward", scale=5.0)
    scaled = settings_for(
        PhraseTable(
            reward, encode_examples(reward, load_examples("world", "--images", count=COUNT))
        ),
        PHOTO,
        OTHERS,
    )
    assert scaled.mu == pytest.approx(found.mu, rel=1e-3) and scaled.tolerance == pytest.approx(
        5 * found.tolerance, rel=0.05
    )


def test_pieces_of_recipes_are_accepted_by_a_recipe(world, tmp_path):
    found = settings_for(world, ('Photo: yes, 50 % "real"\'s', "# no"), ("null", "{a}", "- b"))
    for section in recipes(found).values():
        read = yaml.safe_load(as_yaml(section))["method"]
        assert read == section
        run = load_run(RECIPE, [f"method={json.dumps(section, ensure_ascii=False)}"])
        assert run.method.form == section["form"] and run.method.control_phrases.positive == [
            'Photo: yes, 50 % "real"\'s',
            "# no",
        ]
        assert as_override(section).startswith("--set 'method={")


# --- the embedded reward --------------------------------------------------------------------------


def test_the_true_style_words_are_ranked_first_among_thirty(world):
    words = sorted((world.phrase(phrase) for phrase in COMMON), key=lambda word: -word.lift.size)
    assert {word.phrase for word in words[:2]} == set(PHOTO) and words[1].lift.size > 5 * words[
        2
    ].lift.size
    unwanted = {
        "CG render",
        "Glossy plastic",
        "Oil painting",
        "Brush strokes",
        "Anime",
        "Flat cartoon",
        "Render",
        "Painting",
        "Cartoon",
    }
    assert {word.phrase for word in words[-8:]} <= unwanted
    assert usable_phrases(words, 1) == [word.phrase for word in words[:2]]
    chosen = choose_phrases(world, usable_phrases(words, 1), usable_phrases(words, -1))
    assert (
        chosen is not None
        and set(chosen[0]) == set(PHOTO)
        and set(chosen[1]) <= unwanted
        and len(chosen[1]) >= 3
    )


def test_a_phrase_for_which_the_reward_has_no_room_is_named(world):
    word = world.phrase("Concept art of the very highest quality")
    assert word.cut == COUNT and world.limit == 16 and world.phrase("Anime").cut == 0
    assert (
        word.warnings(16, COUNT)[0]
        == f"too long: the reward reads 16 tokens, and {COUNT} of {COUNT} prompts are truncated"
    )
    assert usable_phrases([word], 1) == usable_phrases([word], -1) == []


def test_texts_that_overlap_are_named_and_not_chosen(world):
    near, far = world.pair(["Photo"], ["Render"]), world.pair(PHOTO[:1], OTHERS[:1])
    assert near.cosine > 0.97 and any("overlap" in warning for warning in near.warnings)
    assert far.cosine < 0.9 and not any("overlap" in warning for warning in far.warnings)
    assert near.distance == pytest.approx((2 - 2 * near.cosine) ** 0.5, rel=0.02)
    assert choose_phrases(world, ["Photo"], ["Render"]) is None


# --- phrases and page -----------------------------------------------------------------------------


def test_phrases_are_trimmed_once_each_and_refused_by_name(tmp_path):
    assert checked_phrases([" Photo ", "photo", "Anime"], "--positive") == ("Photo", "Anime")
    for bad, reason in (
        ("  ", "phrase 2 is empty"),
        (" . ", "phrase 2 is empty"),
        ("x" * (MAX_LENGTH + 1), "201 characters"),
        ("a\nb", "one line"),
        ("a\x00", "U\\+0000"),
    ):
        with pytest.raises(DirectAlignError, match=f"--positive: .*{reason}"):
            checked_phrases(["Photo", bad], "--positive")
    with pytest.raises(DirectAlignError, match="600 phrases; the limit is 500"):
        checked_phrases([str(number) for number in range(600)], "--positive")
    file = tmp_path / "words.txt"
    file.write_text("# remark\n\nPhoto\nAnime\n")
    assert candidates_file(file) == ("Photo", "Anime")
    file.write_text("# remark\n")
    with pytest.raises(DirectAlignError, match=r"words\.txt: no phrase"):
        candidates_file(file)


def test_a_side_takes_what_is_named_then_the_file_then_the_recipe_then_the_common_list(tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("Photo\nAnime\n")
    assert candidate_sides("world:reward", [], [], None) == (COMMON, COMMON)
    assert candidate_sides(RECIPE, [], [], None) == (PHOTO, OTHERS)
    assert candidate_sides(RECIPE, ["Mine"], [], None) == (("Mine",), OTHERS)
    assert candidate_sides(RECIPE, ["Mine"], [], file) == (
        ("Mine", "Photo", "Anime"),
        ("Photo", "Anime"),
    )


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}",
    "[red]loud[/red]",
    "𝔓hoto 👩‍🎨",
)


def test_hostile_phrases_are_shown_as_text(tmp_path):
    table = planted([0.8, 0.9, 0.7], [0.6, 0.7, 0.55])
    examples = Examples(
        torch.rand(3, 3, 8, 8),
        torch.rand(3, 3, 8, 8),
        ("<b>", "b", "c"),
        ("a", "b", "</style>"),
        False,
    )
    found = analyze_phrases(table.reward, table.encoded, [*HOSTILE, "Light"], ["Dark", *HOSTILE])
    page = write_report(
        found,
        examples,
        ReportSource("<i>reward</i>", "world", "directalign reward phrases"),
        tmp_path / "new" / "out",
    ).read_text()
    assert (
        "<script" not in page
        and "<img src=x" not in page
        and "49" not in page.split("<h2>Phrases</h2>")[1].split("</table>")[0].replace("+0.49", "")
    )
    assert (
        "&lt;script&gt;" in page
        and "[red]loud[/red]" in page
        and "&lt;i&gt;reward" in page
        and page.count("<style>") == 1
    )
    data = json.loads((tmp_path / "new" / "out" / "phrases.json").read_text())
    assert {word["phrase"] for word in data["phrases"]} == {*HOSTILE, "Light", "Dark"}
    assert data["suggestion"]["pair"]["positive"] == ["Light"] and data["together"] is not None
    assert to_json(found)["warnings"] == data["warnings"]


def test_encoded_images_score_every_image_in_its_place():
    reward = PlantedReward()
    features = tuple(
        reward.encode(torch.full((size, 3, 2, 2), value)) for size, value in ((2, 0.2), (1, 0.7))
    )
    looked = EncodedImages(features, (2, 1), ("dark thing", "dark thing", "light thing"))
    assert torch.allclose(looked.score(reward, "Light"), torch.tensor([1.2, 1.2, 1.7]).double())
    assert torch.allclose(
        looked.score(reward, "", ["light thing"] * 3),
        torch.tensor([0.0, 0.0, 1.0]).double(),
        atol=1e-6,
    )
