"""Candidates, image folders and rewards of a comparison; refusals before loading."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from tiny_runs import recipe, write_run_folder

from directalign.config.load import dump_run
from directalign.evaluation.candidates import Candidate, open_candidates, samples_of_images
from directalign.evaluation.eval_rewards import eval_rewards, gap_phrases
from directalign.types import DirectAlignError


def image_folder(folder: Path, pairs: list[tuple[str, int]], size: int = 32) -> Path:
    """A folder of images as `directalign sample` writes it."""
    folder.mkdir(parents=True)
    lines = []
    for place, (prompt, seed) in enumerate(pairs):
        Image.new("RGB", (size, size), (30 * place, 60, 90)).save(folder / f"{place}.png")
        lines.append(json.dumps({"file": f"{place}.png", "prompt": prompt, "seed": seed}))
    (folder / "images.jsonl").write_text("\n".join(lines))
    return folder


def candidates_of(*sources: Path | str, base: bool = False, **rollout: int) -> list[Candidate]:
    return open_candidates([str(source) for source in sources], base, rollout)


@pytest.fixture(scope="module")
def runs(pipelines, tmp_path_factory):
    """Two runs on one base, and one of it that is sampled in more steps."""
    root = tmp_path_factory.mktemp("runs")
    plain = recipe("flux", pipelines["flux"], "none")
    longer = recipe("flux", pipelines["flux"], "none", num_inference_steps=3)
    one = write_run_folder(root / "one", plain)
    folders = {name: Path(shutil.copytree(one, root / name)) for name in ("two", "longer")}
    (folders["longer"] / "run.yaml").write_text(dump_run(longer))
    return {"one": one, **folders}


def test_labels_and_keys(runs, pipelines, tmp_path):
    images = image_folder(tmp_path / "some images", [("a", 1)])
    named = [f"Größer & <b>={runs['two']}", pipelines["flux"], images, f"base={images}"]
    found = candidates_of(runs["one"], *named)
    assert [(each.label, each.key, each.kind) for each in found] == [
        ("tiny", "tiny", "run"),
        ("Größer & <b>", "groer_b", "run"),
        ("flux", "flux", "model"),
        ("some images", "some_images", "images"),
        ("base", "base_2", "images"),
    ]
    derived = candidates_of(runs["one"], runs["two"])
    assert [each.label for each in derived] == ["tiny (one)", "tiny (two)"]
    assert [each.key for each in derived] == ["tiny_one", "tiny_two"]


def test_a_base_is_added_once_for_each_way_of_sampling(runs, tmp_path):
    found = candidates_of(runs["one"], f"other={runs['two']}", base=True)
    kinds = [("base", "base", None), ("tiny", "run", "base"), ("other", "run", "base")]
    assert [(each.key, each.kind, each.base) for each in found] == kinds
    first = found[0]
    assert (first.trained, first.recipe, first.label) == (None, None, "Base model")
    long = f"long={runs['longer']}"
    two = candidates_of(runs["one"], long, base=True)
    labels = [("base", "Base model of tiny"), ("base_2", "Base model of long")]
    assert [(each.key, each.label) for each in two[:2]] == labels
    assert [each.base for each in two[2:]] == ["base", "base_2"]
    images = image_folder(tmp_path / "i", [("a", 1)])
    equal = candidates_of(runs["one"], long, images, base=True, num_inference_steps=4)
    assert [each.base for each in equal] == [None, "base", "base", "base"]
    assert equal[1].run is not None and equal[1].run.rollout.num_inference_steps == 4


def test_sources_that_cannot_be_compared_are_refused(runs, pipelines, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut").mkdir()
    shutil.copy(runs["two"] / "run.yaml", tmp_path / "cut")
    refused = {
        (): "nothing to compare",
        (f"x={runs['one']}",) * 2: r"are both called 'x'; give each a label of its own",
        (runs["one"],) * 2: "are both called",
        (tmp_path / "cut",): r"lora\.safetensors: no such file, the run is not finished",
        (tmp_path / "empty",): r"neither a run \(run\.yaml\), nor a pipeline",
        ("=x",): "write it as LABEL=SOURCE",
        ("gone/typo",): "gone/typo",
    }
    for sources, words in refused.items():
        with pytest.raises(DirectAlignError, match=words):
            candidates_of(*sources)
    words = "--base: adds the model that a run began with, and no run is compared"
    with pytest.raises(DirectAlignError, match=words):
        candidates_of(pipelines["flux"], base=True)


def test_folders_of_images_are_paired_by_prompt_and_seed(tmp_path):
    pairs = [("b", 1), ("b", 2), ("a", 1)]
    one, two = image_folder(tmp_path / "one", pairs), image_folder(tmp_path / "two", pairs[::-1])
    samples, files = samples_of_images(candidates_of(one, two), None)
    assert [(sample.prompt, sample.seed) for sample in samples] == pairs
    assert [file.name for file in files["two"]] == ["2.png", "1.png", "0.png"]
    assert len(samples_of_images(candidates_of(one), 2)[0]) == 2


def test_folders_of_images_that_do_not_fit_are_refused(tmp_path):
    pairs = [("a", 1), ("b", 1)]
    image_folder(tmp_path / "one", pairs)
    image_folder(tmp_path / "less", pairs[:1])
    image_folder(tmp_path / "large", pairs, size=48)
    image_folder(tmp_path / "twice", [("a", 1), ("a", 1)])

    def check(words: str, *names: str) -> None:
        with pytest.raises(DirectAlignError, match=words):
            samples_of_images(candidates_of(*(tmp_path / name for name in names)), None)

    words = r"one and .*less are not of the same prompts and seeds: 1 images .* 'b', seed 1"
    check(words, "one", "less")
    check("are not of the same prompts", "less", "one")
    check(r"has 32x32 pixels and .*48x48: bring all images to one size", "one", "large")
    check(r"images\.jsonl:2: 'a' with seed 1 comes twice", "twice")
    for row, words in (
        ({"file": "../less/0.png", "prompt": "a", "seed": 1}, "lies outside"),
        ({"file": "9.png", "prompt": "a", "seed": 1}, "9.png is missing"),
        ({"file": "0.png", "prompt": "a"}, "seed is None"),
        ({"file": 3, "prompt": "a", "seed": 1}, "file is 3"),
        (None, "names no image"),
    ):
        text = "" if row is None else json.dumps(row)
        (tmp_path / "one" / "images.jsonl").write_text(text)
        check(words, "one")


def test_a_reward_of_several_sources_is_evaluated_once(runs, pipelines, tmp_path):
    run = recipe("flux", pipelines["flux"], "none")
    red, bright, saturated = (
        {"name": "pixels", "statistic": name} for name in ("redness", "brightness", "saturation")
    )
    members = [{"label": "r", "reward": red}, {"label": "l", "reward": bright}]
    changes = {
        "tiny": {"evaluate": {"rewards": {"light": bright, "redness": saturated}}},
        "other": {"reward": bright | {"scale": 2.0}},
        "mixed": {"reward": {"name": "mix", "members": members}},
    }
    sources = []
    for name, change in changes.items():
        folder = Path(shutil.copytree(runs["one"], tmp_path / name))
        changed = run.model_validate(run.model_dump() | {"name": name} | change)
        (folder / "run.yaml").write_text(dump_run(changed))
        sources.append(folder)
    (tmp_path / "section.yaml").write_text("name: pixels\nstatistic: saturation\nscale: 3\n")
    options = ["again={name: pixels, statistic: brightness}", f"c={tmp_path / 'section.yaml'}"]
    found = eval_rewards(candidates_of(*sources[:2], base=True), options)
    expected = [("redness", ("tiny",)), ("brightness", ("other",)), ("redness-2", ())]
    assert [(each.label, each.trained) for each in found] == expected
    trained = {each.label: each.trained for each in eval_rewards(candidates_of(*sources), [])}
    assert trained["redness"] == ("tiny", "mixed")


def test_rewards_that_cannot_be_read_are_named():
    for text, words in (
        ("noequals", "write it as LABEL=RECIPE"),
        ("a b=x", "write it as LABEL=RECIPE"),
        ("a={name: pixels, statistic: nothing}", "statistic"),
        ("a={name: pixels", "is not YAML"),
        ("a=no/such/folder/at/all", "config.json|no such"),
    ):
        with pytest.raises(DirectAlignError, match=words):
            eval_rewards([], [text])


def test_phrases_of_the_style_gap(runs):
    candidates = candidates_of(runs["one"])
    assert gap_phrases(candidates, ["a"], ["b", "c"]).negative == ["b", "c"]
    default = gap_phrases(candidates, [], [])  # the run has none of its own
    assert default.positive == ["Realistic photo"]
    with pytest.raises(DirectAlignError, match="--positive and --negative"):
        gap_phrases(candidates, ["a"], [])
