"""Control words measured: planted rewards whose answers are known, the embedded reward whose words are known, and the setting that follows."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from directalign import config
from directalign.config_loading import load_run
from directalign.control.answers import Looked, look
from directalign.control.bias_probes import PROBES
from directalign.control.examples import Examples, load_examples
from directalign.control.findings import as_data, find
from directalign.control.geometry import Texts, holding
from directalign.control.phrases import COMMON, LONGEST, candidates_file, checked_phrases, sides
from directalign.control.suggest import AT_REST, anchored_section, choose, fit, ramp, relative_section, setting, tolerance
from directalign.control.words import Table, pair_warnings, word_warnings
from directalign.control.words_page import Asked, as_override, fragment, write_words
from directalign.core.preference import absolute_relative
from directalign.rewards import ClipReward, load_reward
from directalign.types import DirectAlignError

PHOTO, OTHERS = ("Realistic photo", "Natural lighting"), ("CG render", "Oil painting", "Anime")
RECIPE = "recipes/world_srpo.yaml"
COUNT = 24


GREYS = {"Light": 1.0, "Dark": -1.0}
"""What the planted reward pays for grey under a phrase."""


class PlantedReward:
    """Features are (grey, redness). Redness pays 1 under every phrase, grey pays 1 under Light, −1 under Dark; a caption pays where it is the image's own.

    "Rust" is a word that pays redness twice, "Shout" one that drowns the caption.
    """

    name, reads_prompt, differentiable = "planted", True, True

    def encode(self, images: Tensor) -> Tensor:
        return torch.stack([images.mean((1, 2, 3)), (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2))], 1)

    def score(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.stack([self._one(*row, text) for row, text in zip(features.tolist(), prompts, strict=True)])

    def _one(self, grey: float, red: float, text: str) -> Tensor:
        phrase, _, caption = text.rpartition(". ")
        own = 1.0 if caption == ("light thing" if round(grey, 6) > 0.5 else "dark thing") else 0.0
        content = own * (0.5 if phrase == "Shout" else 1.0)
        return torch.tensor(GREYS.get(phrase, 0.0) * grey + red * (2 if phrase == "Rust" else 1) + content)


def planted(wanted: Sequence[float], unwanted: Sequence[float], paired: bool = True) -> Table:
    """Grey images of these values, captioned by which half they lie in."""

    def images(values: Sequence[float]) -> Tensor:
        return torch.tensor(values)[:, None, None, None].expand(len(values), 3, 8, 8).clone()

    prompts = [tuple("light thing" if value > 0.5 else "dark thing" for value in values) for values in (wanted, unwanted)]
    reward = PlantedReward()
    return Table(reward, look(reward, Examples(images(wanted), images(unwanted), *prompts, paired)))


@pytest.fixture(scope="module")
def world() -> Table:
    reward = ClipReward.load("world:reward")
    return Table(reward, look(reward, load_examples("world", "--images", count=COUNT)))


# --- numbers ------------------------------------------------------------------------------------------------------------


def test_lift_gap_and_content_of_planted_words():
    table = planted([0.9, 0.4, 0.8], [0.6, 0.1, 0.5 + 1e-4])
    light, shout = table.word("Light"), table.word("Shout")
    assert light.lift.value == pytest.approx(0.3, abs=1e-3) and light.lift.is_clear and light.content == pytest.approx(1)
    assert table.word("Dark").lift.value == pytest.approx(-0.3, abs=1e-3)
    assert shout.content == pytest.approx(0.5) and not shout.lift.is_clear
    assert ["disturbs" in warning for warning in word_warnings(shout, None, 3)] == [False, True]
    pair = table.pair(["Light"], ["Dark"])
    assert pair.gap.value == pytest.approx(0.6, abs=1e-3) and pair.content == pytest.approx(0) and pair.cosine is None
    assert table.pair(["Light", "Other"], ["Dark"]).gap.value == pytest.approx(0.45, abs=1e-3)  # the mean of both sides


def test_a_bias_that_both_phrases_pay_cancels_and_one_that_one_pays_stays():
    table = planted([0.8, 0.9, 0.7], [0.6, 0.7, 0.55])
    both, one = table.pair(["Light"], ["Dark"]).probes["red tint"], table.pair(["Rust"], ["Dark"]).probes["red tint"]
    assert both.absolute == pytest.approx(0.15, abs=0.01) and both.cancelled == pytest.approx(1, abs=0.01)
    assert one.relative == pytest.approx(both.absolute, rel=0.05)
    assert any("red tint stays in the difference" in warning for warning in pair_warnings(table.pair(["Rust"], ["Dark"])))
    assert not any("red tint" in warning for warning in pair_warnings(table.pair(["Light"], ["Dark"])))


def test_swapped_signs_and_words_that_say_nothing_are_told():
    table = planted([0.8, 0.9, 0.7], [0.6, 0.7, 0.55])
    assert any("signs are swapped" in warning for warning in pair_warnings(table.pair(["Dark"], ["Light"])))
    assert any("does not tell wanted from unwanted" in warning for warning in pair_warnings(table.pair(["Foo"], ["Bar"])))
    assert choose(table, ["Foo"], ["Bar"]) is None and choose(table, [], ["Dark"]) is None
    found = find(table.reward, table.seen, ["Foo"], ["Bar"])
    assert found.suggestion is None and found.warnings[0].startswith("nothing to suggest")


def test_a_reward_without_text_features_gets_words_but_no_ramp(tmp_path):
    table = planted([0.8, 0.9, 0.7], [0.6, 0.7, 0.55], paired=False)
    found = setting(table, ["Light"], ["Dark"])
    assert (found.mu, found.tolerance, relative_section(found), anchored_section(found)) == (None, None, None, None)
    assert find(table.reward, table.seen, ["Light"], ["Dark"]).suggestion is not None


def test_probes_change_what_they_are_named_after():
    grey = torch.full((1, 3, 64, 64), 0.4)
    grey[..., ::2] += 0.2
    changed = {name: probe(grey) for name, probe in PROBES.items()}
    assert changed["red tint"].mean((0, 2, 3)).argmax() == 0 and changed["green tint"].mean((0, 2, 3)).argmax() == 1
    assert changed["purple tint"].mean((0, 2, 3)).argmin() == 1 and changed["brightness"].mean() > grey.mean() + 0.09
    assert changed["blur"].std() < grey.std() < changed["sharpening"].std()
    assert torch.allclose(changed["saturation"], grey)  # grey has no colour to raise
    assert all(image.min() >= 0 and image.max() <= 1 and image.shape == grey.shape for image in changed.values())


def test_too_few_images_and_rewards_without_a_text_side_are_refused():
    with pytest.raises(DirectAlignError, match="1 wanted and 3 unwanted"):
        planted([0.8], [0.6, 0.7, 0.5])
    reward = load_reward(config.Pixels(statistic="redness"))
    with pytest.raises(DirectAlignError, match="ignores prompts"):
        find(reward, look(reward, load_examples("world", "--images", count=2)), ["a"], ["b"])


# --- geometry and setting -----------------------------------------------------------------------------------------------


def unit(seed: int, rows: int = 6) -> Tensor:
    return F.normalize(torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed)).double(), dim=-1)


def test_at_the_holding_weight_a_step_uphill_leaves_the_plain_score_alone():
    plain, images = F.normalize(unit(0) + 3, dim=-1), F.normalize(unit(1) + 2, dim=-1)
    pos, neg = F.normalize(plain + 0.3 * unit(2) + 0.6 * images, dim=-1), F.normalize(plain + 0.3 * unit(3), dim=-1)
    mu = holding(pos, neg, plain, images)
    assert mu > 0

    def gained(weight: float, step: float = 1e-6) -> float:
        """Change of the mean plain score when unit images take a step along weight·mean + difference."""
        uphill = weight * (pos + neg) / 2 + (pos - neg)
        moved = F.normalize(images + step * uphill, dim=-1)
        return ((moved - images) * plain).sum(-1).mean().item() / step

    assert gained(mu) == pytest.approx(0, abs=1e-5)
    assert gained(mu + 0.1) > 1e-3 and gained(mu - 0.1) < -1e-3


def test_words_that_pull_against_the_prompt_have_no_weight_that_holds_it():
    plain = unit(0)
    with pytest.raises(DirectAlignError, match="away from the prompt"):
        holding(-plain, -plain, plain, unit(1))


def test_a_ramp_begins_at_no_absolute_weight_and_ends_at_twice_the_mean():
    ends = ramp(0.3)
    low, high = (absolute_relative(ends["k_pos"][end], ends["k_neg"][end]) for end in ("low_noise", "high_noise"))
    assert low == pytest.approx((0.0, 1.0)) and high == pytest.approx((0.6, 1.0))


def test_tolerance_is_where_the_anchor_rests_at_a_hundredth_of_what_content_is_worth():
    found = tolerance(0.8, 0.3)
    assert found == pytest.approx(AT_REST * 0.8 / 0.3, rel=0.05)  # two digits
    assert tolerance(8.0, 0.3) == pytest.approx(10 * found, rel=0.05)
    assert tolerance(None, 0.3) is None and tolerance(0.8, 0.0) is None


def test_the_tolerance_that_is_known_to_work_comes_out_for_the_embedded_reward(world):
    found = setting(world, PHOTO, OTHERS)
    assert 0.02 <= found.tolerance <= 0.05 and 0.2 < found.mu < 0.45
    assert found.pays["red tint"] < 0.2
    reward = ClipReward.load("world:reward", scale=5.0)
    scaled = setting(Table(reward, look(reward, load_examples("world", "--images", count=COUNT))), PHOTO, OTHERS)
    assert scaled.mu == pytest.approx(found.mu, rel=1e-3) and scaled.tolerance == pytest.approx(5 * found.tolerance, rel=0.05)


def test_pieces_of_recipes_are_accepted_by_a_recipe(world, tmp_path):
    found = setting(world, ('Photo: yes, 50 % "real"\'s', "# no"), ("null", "{a}", "- b"))
    for section in (anchored_section(found), relative_section(found)):
        read = yaml.safe_load(fragment(section))["method"]
        assert read == section
        run = load_run(RECIPE, [f"method={json.dumps(section, ensure_ascii=False)}"])
        assert run.method.form == section["form"] and run.method.words.positive == ['Photo: yes, 50 % "real"\'s', "# no"]
        assert as_override(section).startswith("--set 'method={")


# --- the embedded reward ------------------------------------------------------------------------------------------------


def test_the_true_style_words_are_ranked_first_among_thirty(world):
    words = sorted((world.word(phrase) for phrase in COMMON), key=lambda word: -word.lift.size)
    assert {word.phrase for word in words[:2]} == set(PHOTO) and words[1].lift.size > 5 * words[2].lift.size
    unwanted = {"CG render", "Glossy plastic", "Oil painting", "Brush strokes", "Anime", "Flat cartoon", "Render", "Painting", "Cartoon"}
    assert {word.phrase for word in words[-8:]} <= unwanted
    assert fit(words, 1) == [word.phrase for word in words[:2]]
    chosen = choose(world, fit(words, 1), fit(words, -1))
    assert chosen is not None and set(chosen[0]) == set(PHOTO) and set(chosen[1]) <= unwanted and len(chosen[1]) >= 3


def test_a_phrase_for_which_the_reward_has_no_room_is_named(world):
    word = world.word("Concept art of the very highest quality")
    assert word.cut == COUNT and world.limit == 16 and world.word("Anime").cut == 0
    assert word_warnings(word, 16, COUNT)[0] == f"too long: the reward reads 16 tokens, and {COUNT} of {COUNT} prompts lose their end"
    assert fit([word], 1) == fit([word], -1) == []


def test_texts_that_overlap_are_named_and_not_chosen(world):
    near, far = world.pair(["Photo"], ["Render"]), world.pair(PHOTO[:1], OTHERS[:1])
    assert near.cosine > 0.97 and any("overlap" in warning for warning in pair_warnings(near))
    assert far.cosine < 0.9 and not any("overlap" in warning for warning in pair_warnings(far))
    assert near.apart == pytest.approx((2 - 2 * near.cosine) ** 0.5, rel=0.02)
    assert choose(world, ["Photo"], ["Render"]) is None


def test_texts_are_read_once(world, monkeypatch):
    read: list[str] = []
    whole = ClipReward.encode_text
    monkeypatch.setattr(ClipReward, "encode_text", lambda self, phrases: read.extend(phrases) or whole(self, phrases))
    texts = Texts(world.reward, world.seen.wanted)
    texts.cosine(["Anime"], [""])
    texts.apart(["Anime"], [""])
    assert len(read) == 2 * COUNT


# --- phrases and page ---------------------------------------------------------------------------------------------------


def test_phrases_are_trimmed_once_each_and_refused_by_name(tmp_path):
    assert checked_phrases([" Photo ", "photo", "Anime"], "--positive") == ("Photo", "Anime")
    for bad, reason in (
        ("  ", "phrase 2 is empty"),
        (" . ", "phrase 2 is empty"),
        ("x" * (LONGEST + 1), "201 characters"),
        ("a\nb", "one line"),
        ("a\x00", "U\\+0000"),
    ):
        with pytest.raises(DirectAlignError, match=f"--positive: .*{reason}"):
            checked_phrases(["Photo", bad], "--positive")
    with pytest.raises(DirectAlignError, match="600 phrases; 500"):
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
    assert sides("world:reward", [], [], None) == (COMMON, COMMON)
    assert sides(RECIPE, [], [], None) == (PHOTO, OTHERS)
    assert sides(RECIPE, ["Mine"], [], None) == (("Mine",), OTHERS)
    assert sides(RECIPE, ["Mine"], [], file) == (("Mine", "Photo", "Anime"), ("Photo", "Anime"))


HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "[red]loud[/red]", "𝔓hoto 👩‍🎨")


def test_hostile_phrases_are_shown_as_text(tmp_path):
    table = planted([0.8, 0.9, 0.7], [0.6, 0.7, 0.55])
    examples = Examples(torch.rand(3, 3, 8, 8), torch.rand(3, 3, 8, 8), ("<b>", "b", "c"), ("a", "b", "</style>"), False)
    found = find(table.reward, table.seen, [*HOSTILE, "Light"], ["Dark", *HOSTILE])
    page = write_words(found, examples, Asked("<i>reward</i>", "world", "directalign words"), tmp_path / "new" / "out").read_text()
    assert "<script" not in page and "<img src=x" not in page and "49" not in page.split("<h2>Words</h2>")[1].split("</table>")[0].replace("+0.49", "")
    assert "&lt;script&gt;" in page and "[red]loud[/red]" in page and "&lt;i&gt;reward" in page and page.count("<style>") == 1
    data = json.loads((tmp_path / "new" / "out" / "words.json").read_text())
    assert {word["phrase"] for word in data["words"]} == {*HOSTILE, "Light", "Dark"}
    assert data["suggestion"]["pair"]["positive"] == ["Light"] and data["together"] is not None
    assert as_data(found)["warnings"] == data["warnings"]


def test_looked_scores_every_image_in_its_place():
    reward = PlantedReward()
    features = tuple(reward.encode(torch.full((size, 3, 2, 2), value)) for size, value in ((2, 0.2), (1, 0.7)))
    looked = Looked(features, (2, 1), ("dark thing", "dark thing", "light thing"))
    assert torch.allclose(looked.score(reward, "Light"), torch.tensor([1.2, 1.2, 1.7]).double())
    assert torch.allclose(looked.score(reward, "", ["light thing"] * 3), torch.tensor([0.0, 0.0, 1.0]).double(), atol=1e-6)
