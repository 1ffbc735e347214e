"""Control phrases measured on planted rewards and on the embedded one, and suggested settings."""

import json
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from directalign import config
from directalign.config.load import load_run
from directalign.reward_analysis import (
    COMMON,
    MAX_LENGTH,
    candidate_sides,
    candidates_file,
    checked_phrases,
)
from directalign.reward_analysis import phrases_report as report
from directalign.reward_analysis.images import Examples, load_examples
from directalign.reward_analysis.phrases import (
    AT_REST,
    PhraseTable,
    analyze_phrases,
    anchor_tolerance,
    choose_phrases,
    preserving_ratio,
    settings_for,
    usable_phrases,
)
from directalign.rewards import load_reward
from directalign.rewards.clip import ClipReward
from directalign.types import DirectAlignError

PHOTO, OTHERS = ("Realistic photo", "Natural lighting"), ("CG render", "Oil painting", "Anime")
RECIPE, COUNT = "world_srpo", 24
WANTED, UNWANTED = (0.8, 0.9, 0.7), (0.6, 0.7, 0.55)
GRAYS = {"Light": 1.0, "Dark": -1.0}


class PlantedReward:
    """Score: gray level times `GRAYS` of the phrase + redness (twice after "Rust") + own caption.

    The own caption counts 1, after "Shout" 0.5. Features are (gray, redness).
    """

    name, sees, reads_prompt, differentiable = "planted", "pixels", True, True

    def encode(self, images: Tensor) -> Tensor:
        red = images[:, 0] - images[:, 1:].mean(1)
        return torch.stack([images.mean((1, 2, 3)), red.mean((1, 2))], 1)

    def score(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        pairs = zip(features.tolist(), prompts, strict=True)
        return torch.stack([self._score(*row, text) for row, text in pairs])

    def _score(self, gray: float, red: float, text: str) -> Tensor:
        phrase, _, caption = text.rpartition(". ")
        own = float(caption == caption_of(round(gray, 6))) * (0.5 if phrase == "Shout" else 1.0)
        return torch.tensor(GRAYS.get(phrase, 0) * gray + red * (1 + (phrase == "Rust")) + own)


def caption_of(gray: float) -> str:
    return "light thing" if gray > 0.5 else "dark thing"


def planted(wanted: Sequence[float], unwanted: Sequence[float], paired: bool = True) -> PhraseTable:
    """Uniform gray images of these levels."""
    images = [
        torch.tensor(levels)[:, None, None, None].expand(len(levels), 3, 8, 8).clone()
        for levels in (wanted, unwanted)
    ]
    prompts = [tuple(map(caption_of, levels)) for levels in (wanted, unwanted)]
    return PhraseTable(PlantedReward(), Examples(*images, *prompts, paired))


def world_table(scale: float | None = None) -> PhraseTable:
    reward = ClipReward.load("world:reward", **({} if scale is None else {"scale": scale}))
    examples = load_examples("world", "--images", count=COUNT)
    return PhraseTable(reward, examples)


@pytest.fixture(scope="module")
def world():
    return world_table()


def test_lift_gap_and_content_of_planted_phrases():
    table = planted([0.9, 0.4, 0.8], [0.6, 0.1, 0.5 + 1e-4])
    light, shout = table.phrase("Light"), table.phrase("Shout")
    assert light.lift.value == pytest.approx(0.3, abs=1e-3) and light.lift.is_clear
    assert light.content == pytest.approx(1) and shout.content == pytest.approx(0.5)
    assert table.phrase("Dark").lift.value == pytest.approx(-0.3, abs=1e-3)
    assert not shout.lift.is_clear and "disturbs content" in shout.warnings[1]
    pair = table.pair(["Light"], ["Dark"])
    assert pair.gap.value == pytest.approx(0.6, abs=1e-3) and pair.cosine is None
    assert pair.content == pytest.approx(0)
    mean = table.pair(["Light", "Other"], ["Dark"])
    assert mean.gap.value == pytest.approx(0.45, abs=1e-3)


def test_a_common_bias_cancels_and_a_bias_of_one_phrase_remains():
    table = planted(WANTED, UNWANTED)
    pairs = [table.pair([phrase], ["Dark"]) for phrase in ("Light", "Rust")]
    both, one = (pair.probes["red tint"] for pair in pairs)
    assert both.absolute == pytest.approx(0.15, abs=0.01)
    assert both.cancelled == pytest.approx(1, abs=0.01)
    assert one.relative == pytest.approx(both.absolute, rel=0.05)
    remains = [any("red tint remains" in text for text in pair.warnings) for pair in pairs]
    assert remains == [False, True]


def test_swapped_and_ineffective_phrases_are_warned_of():
    table = planted(WANTED, UNWANTED)
    assert "swap the two sides" in " ".join(table.pair(["Dark"], ["Light"]).warnings)
    assert "does not separate" in " ".join(table.pair(["Foo"], ["Bar"]).warnings)
    assert choose_phrases(table, ["Foo"], ["Bar"]) is choose_phrases(table, [], ["Dark"]) is None
    found = analyze_phrases(table, ["Foo"], ["Bar"])
    assert found.suggestion is None and found.warnings[0].startswith("nothing to suggest")


def test_few_images_and_rewards_without_a_text_side_are_refused():
    with pytest.raises(DirectAlignError, match="1 wanted and 3 unwanted"):
        planted([0.8], [0.6, 0.7, 0.5])
    reward = load_reward(config.PixelStatisticsConfig(statistic="redness"))
    table = PhraseTable(reward, load_examples("world", "--images", count=2))
    with pytest.raises(DirectAlignError, match="ignores control phrases"):
        analyze_phrases(table, ["a"], ["b"])


def unit(seed: int, shift: Tensor | float = 0.0) -> Tensor:
    drawn = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)).double()
    return F.normalize(F.normalize(drawn, dim=-1) + shift, dim=-1)


def test_at_the_preserving_ratio_a_gradient_step_preserves_the_bare_score():
    plain, images = unit(0, 3), unit(1, 2)
    pos = F.normalize(plain + 0.3 * unit(2) + 0.6 * images, dim=-1)
    neg = F.normalize(plain + 0.3 * unit(3), dim=-1)
    mu = preserving_ratio(pos, neg, plain, images)

    def slope(weight: float, step: float = 1e-6) -> float:
        """Of the mean bare score when unit images take a step along the gradient."""
        gradient = weight * (pos + neg) / 2 + (pos - neg)
        moved = F.normalize(images + step * gradient, dim=-1)
        return ((moved - images) * plain).sum(-1).mean().item() / step

    assert mu > 0 and slope(mu) == pytest.approx(0, abs=1e-5)
    assert slope(mu + 0.1) > 1e-3 and slope(mu - 0.1) < -1e-3
    with pytest.raises(DirectAlignError, match="reduce the score of the prompt"):
        preserving_ratio(-plain, -plain, plain, images)


def test_the_tolerance_is_proportional_to_the_content_margin(world):
    assert anchor_tolerance(0.8, 0.3) == pytest.approx(AT_REST * 0.8 / 0.3, rel=0.05)  # two digits
    assert anchor_tolerance(None, 0.3) is None and anchor_tolerance(0.8, 0.0) is None
    found = settings_for(world, PHOTO, OTHERS)
    scaled = settings_for(world_table(scale=5.0), PHOTO, OTHERS)
    assert found.tolerance is not None and found.mu is not None
    assert 0.02 <= found.tolerance <= 0.05 and 0.2 < found.mu < 0.45  # known to work
    assert found.probe_shares["red tint"] < 0.2
    assert scaled.mu == pytest.approx(found.mu, rel=1e-3)
    assert scaled.tolerance == pytest.approx(5 * found.tolerance, rel=0.05)


def test_suggested_sections_are_valid_in_a_recipe(world):
    odd = ('Photo: yes, 50 % "real"\'s', "# no")
    sections = report.recipes(settings_for(world, odd, ("null", "{a}", "- b")))
    for section in sections.values():
        assert yaml.safe_load(report.as_yaml(section))["method"] == section
        run = load_run(RECIPE, [f"method={json.dumps(section, ensure_ascii=False)}"])
        assert run.method.form == section["form"]
        assert run.method.control_phrases.positive == list(odd)
        assert report.as_override(section).startswith("--set 'method={")


def test_the_style_phrases_are_ranked_first_among_the_common_ones(world):
    ranked = sorted((world.phrase(each) for each in COMMON), key=lambda each: -each.lift.size)
    assert {each.phrase for each in ranked[:2]} == set(PHOTO)
    assert ranked[1].lift.size > 5 * ranked[2].lift.size
    unwanted = {*("CG render", "Glossy plastic", "Oil painting", "Brush strokes", "Anime")}
    unwanted |= {"Flat cartoon", "Render", "Painting", "Cartoon"}
    assert {each.phrase for each in ranked[-8:]} <= unwanted
    usable = [usable_phrases(ranked, sign) for sign in (1, -1)]
    assert usable[0] == [each.phrase for each in ranked[:2]]
    chosen = choose_phrases(world, *usable)
    assert chosen is not None and set(chosen[0]) == set(PHOTO)
    assert set(chosen[1]) <= unwanted and len(chosen[1]) >= 3


def test_a_truncating_phrase_is_named(world):
    long = world.phrase("Concept art of the very highest quality")
    message = f"too long: the reward reads 16 tokens, and {COUNT} of {COUNT} prompts are truncated"
    assert (long.cut, world.phrase("Anime").cut) == (COUNT, 0)
    assert long.warnings[0] == message
    assert usable_phrases([long], 1) == usable_phrases([long], -1) == []


def test_overlapping_texts_are_named_and_not_chosen(world):
    near, far = world.pair(["Photo"], ["Render"]), world.pair(PHOTO[:1], OTHERS[:1])
    assert near.cosine is not None and far.cosine is not None
    assert near.cosine > 0.97 and "overlap" in " ".join(near.warnings)
    assert far.cosine < 0.9 and "overlap" not in " ".join(far.warnings)
    assert near.distance == pytest.approx((2 - 2 * near.cosine) ** 0.5, rel=0.02)
    assert choose_phrases(world, ["Photo"], ["Render"]) is None


def test_invalid_phrases_are_refused():
    long = "x" * (MAX_LENGTH + 1)
    for phrase, message in (
        ("  ", "phrase 2 is empty"),
        (" . ", "phrase 2 is empty"),
        (long, "201 characters"),
        ("a\nb", "one line"),
        ("a\x00", "U\\+0000"),
    ):
        with pytest.raises(DirectAlignError, match=f"--positive: .*{message}"):
            checked_phrases(["Photo", phrase], "--positive")


def test_candidates_of_options_file_recipe_and_defaults(tmp_path):
    assert checked_phrases([" Photo ", "photo", "Anime"], "--positive") == ("Photo", "Anime")
    with pytest.raises(DirectAlignError, match="600 phrases; the limit is 500"):
        checked_phrases([str(number) for number in range(600)], "--positive")
    file = tmp_path / "phrases.txt"
    file.write_text("# remark\n")
    with pytest.raises(DirectAlignError, match=r"phrases\.txt: no phrase"):
        candidates_file(file)
    file.write_text("# remark\n\nPhoto\nAnime\n")
    named = ("Mine", "Photo", "Anime")
    assert candidate_sides("world:reward", [], [], None) == (COMMON, COMMON)
    assert candidate_sides(RECIPE, [], [], None) == (PHOTO, OTHERS)
    assert candidate_sides(RECIPE, ["Mine"], [], None) == (("Mine",), OTHERS)
    assert candidate_sides(RECIPE, ["Mine"], [], file) == (named, named[1:])


def test_hostile_phrases_are_escaped(tmp_path):
    hostile = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}")
    sides = [*hostile, "[red]loud[/red]", "Light"], ["Dark", *hostile]
    table, images = planted(WANTED, UNWANTED), torch.rand(3, 3, 8, 8)
    examples = Examples(images, images, ("<b>", "b", "c"), ("a", "b", "</style>"), False)
    found = analyze_phrases(table, *sides)
    source = {"reward": "<i>reward</i>", "images": "world", "command": "directalign reward phrases"}
    page = report.write_report(found, examples, tmp_path / "out", **source).read_text()
    assert page.count("<script") == page.count("<style>") == 1 and "<img src=x" not in page
    for text in ("&lt;script&gt;", "[red]loud[/red]", "&lt;i&gt;reward", "{{ 7 * 7 }}"):
        assert text in page
    data = json.loads((tmp_path / "out" / "phrases.json").read_text())
    assert {each["phrase"] for each in data["phrases"]} == {*sides[0], *sides[1]}
    assert data["suggestion"]["pair"]["positive"] == ["Light"] and data["all_given"] is not None
    assert found.warnings == data["warnings"]
