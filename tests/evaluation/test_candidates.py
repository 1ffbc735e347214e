"""Candidates, samples, image folders and rewards of a comparison; refusals before loading."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from tiny_runs import recipe, write_run_folder

from directalign.evaluation.candidates import open_candidates, samples_of_images
from directalign.evaluation.eval_prompts import (
    CONTROL_GROUP,
    PromptRow,
    batches,
    control_samples,
    first_unknown_prompt,
    samples_of_rows,
)
from directalign.evaluation.eval_rewards import eval_rewards, gap_phrases
from directalign.types import DirectAlignError


def image_folder(folder: Path, pairs: list[tuple[str, int]], size: int = 32) -> Path:
    """A folder of images as `directalign sample` leaves it."""
    folder.mkdir(parents=True)
    rows = [
        {"file": f"{place}.png", "prompt": prompt, "seed": seed}
        for place, (prompt, seed) in enumerate(pairs)
    ]
    for place, row in enumerate(rows):
        Image.new("RGB", (size, size), (30 * place, 60, 90)).save(folder / row["file"])
    (folder / "images.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def runs(pipelines: dict[str, Path], prompts: Path, tmp_path: Path) -> dict[str, str]:
    """Two runs on one base, and one of it that is sampled in more steps."""
    plain, longer = (
        recipe("flux", pipelines["flux"], prompts),
        recipe("flux", pipelines["flux"], prompts, num_inference_steps=3),
    )
    return {
        name: str(write_run_folder(tmp_path / name, run))
        for name, run in (("one", plain), ("two", plain), ("longer", longer))
    }


def test_labels_and_keys(runs: dict[str, str], pipelines: dict[str, Path], tmp_path: Path) -> None:
    images = image_folder(tmp_path / "some images", [("a", 1)])
    found = open_candidates(
        [
            runs["one"],
            f"Größer & <b>={runs['two']}",
            str(pipelines["flux"]),
            str(images),
            f"base={images}",
        ],
        False,
        {},
    )
    assert [(each.label, each.key, each.kind) for each in found] == [
        ("tiny", "tiny", "run"),
        ("Größer & <b>", "groer_b", "run"),
        ("flux", "flux", "model"),
        ("some images", "some_images", "images"),
        ("base", "base_2", "images"),
    ]
    derived = open_candidates([runs["one"], runs["two"]], False, {})
    assert [each.label for each in derived] == ["tiny (one)", "tiny (two)"] and [
        each.key for each in derived
    ] == ["tiny_one", "tiny_two"]


def test_a_base_is_added_once_for_each_way_of_sampling(
    runs: dict[str, str], tmp_path: Path
) -> None:
    found = open_candidates([runs["one"], f"other={runs['two']}"], True, {})
    assert [(each.key, each.kind, each.base) for each in found] == [
        ("base", "base", None),
        ("tiny", "run", "base"),
        ("other", "run", "base"),
    ]
    assert found[0].trained is None and found[0].recipe is None and found[0].label == "Base model"
    apart = open_candidates([runs["one"], f"long={runs['longer']}"], True, {})
    assert [(each.key, each.label) for each in apart[:2]] == [
        ("base", "Base model of tiny"),
        ("base_2", "Base model of long"),
    ]
    assert [each.base for each in apart[2:]] == ["base", "base_2"]
    alike = open_candidates(
        [runs["one"], f"long={runs['longer']}", str(image_folder(tmp_path / "i", [("a", 1)]))],
        True,
        {"num_inference_steps": 4},
    )
    assert (
        [each.base for each in alike] == [None, "base", "base", "base"]
        and alike[1].run is not None
        and alike[1].run.rollout.num_inference_steps == 4
    )


def test_what_cannot_be_compared_is_refused(
    runs: dict[str, str], pipelines: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (Path(runs["two"]) / "lora.safetensors").unlink()
    refused = {
        (): "nothing to compare",
        (
            f"x={runs['one']}",
            f"x={runs['one']}",
        ): r"are both called 'x'; give each a label of its own",
        (runs["one"], runs["one"]): "are both called",
        (runs["two"],): r"lora\.safetensors: no such file, the run is not finished",
        (str(tmp_path / "empty"),): r"neither a run \(run\.yaml\), nor a pipeline",
        ("=x",): "write it as LABEL=SOURCE",
        ("gone/typo",): "gone/typo",
    }
    for sources, words in refused.items():
        with pytest.raises(DirectAlignError, match=words):
            open_candidates(list(sources), False, {})
    with pytest.raises(
        DirectAlignError,
        match="--base: adds the model that a run began with, and no run is compared",
    ):
        open_candidates([str(pipelines["flux"])], True, {})


# --- samples --------------------------------------------------------------------------------------


def test_every_prompt_has_its_seeds_and_no_seed_comes_twice() -> None:
    rows = [PromptRow(letter, group="g", facts={"tag": letter}) for letter in "abcde"]
    every = samples_of_rows(rows, None, 3)
    assert (
        len(every) == 15
        and [sample.index for sample in every] == list(range(15))
        and len({sample.seed for sample in every}) == 15
    )
    assert (
        all(
            len({sample.prompt for sample in every[start : start + 3]}) == 1
            for start in range(0, 15, 3)
        )
        and every[0].facts["tag"] == every[0].prompt
    )
    some = samples_of_rows(rows, 5, 2)
    assert [sample.prompt for sample in some] == [every[0].prompt] * 2 + [every[3].prompt] * 2 + [
        every[6].prompt
    ]
    assert len({sample.prompt for sample in samples_of_rows(rows, 20, 2)}) == 5, (
        "too few prompts get more seeds"
    )


def test_batches_keep_a_prompt_together_and_control_prompts_apart(tmp_path: Path) -> None:
    (tmp_path / "o.txt").write_text("soup\na map\n")
    from directalign import config

    samples = samples_of_rows([PromptRow(letter) for letter in "abcde"], None, 3)
    samples += control_samples(str(tmp_path / "o.txt"), config.ControlPhrases(), 15, 4)
    found = batches(samples, 7)
    assert [len(batch) for batch in found] == [6, 6, 3, 4] and [
        sample for batch in found for sample in batch
    ][:15] == samples[:15]
    assert {sample.group for sample in found[-1]} == {CONTROL_GROUP} and len(
        {sample.seed for sample in samples}
    ) == 19
    assert [len(batch) for batch in batches(samples, 1)] == [3] * 5 + [2, 2]


def test_only_captions_are_read_by_the_worlds_judge() -> None:
    samples = samples_of_rows(
        [
            PromptRow("a red star on a navy background"),
            PromptRow("Anime. a red star on a navy background"),
        ],
        None,
        1,
    )
    assert (
        first_unknown_prompt(samples, ["a red star on a navy background"]) is None
        and first_unknown_prompt(samples, ["soup"]) is not None
    )


# --- folders of images ----------------------------------------------------------------------------


def test_folders_of_images_are_paired_by_prompt_and_seed(tmp_path: Path) -> None:
    pairs = [("b", 1), ("b", 2), ("a", 1)]
    one, two = image_folder(tmp_path / "one", pairs), image_folder(tmp_path / "two", pairs[::-1])
    samples, files = samples_of_images(open_candidates([str(one), str(two)], False, {}), None)
    assert [(sample.prompt, sample.seed) for sample in samples] == pairs
    assert [file.name for file in files["two"]] == ["2.png", "1.png", "0.png"]
    assert len(samples_of_images(open_candidates([str(one)], False, {}), 2)[0]) == 2


def test_folders_of_images_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    pairs = [("a", 1), ("b", 1)]
    image_folder(tmp_path / "one", pairs)
    image_folder(tmp_path / "less", pairs[:1])
    image_folder(tmp_path / "large", pairs, size=48)
    image_folder(tmp_path / "twice", [("a", 1), ("a", 1)])

    def check(words: str, *names: str) -> None:
        with pytest.raises(DirectAlignError, match=words):
            samples_of_images(
                open_candidates([str(tmp_path / name) for name in names], False, {}), None
            )

    check(
        r"one and .*less are not of the same prompts and seeds: 1 images .* 'b', seed 1",
        "one",
        "less",
    )
    check("are not of the same prompts", "less", "one")
    check(r"has 32x32 pixels and .*48x48: bring all images to one size", "one", "large")
    check(r"images\.jsonl:2: 'a' with seed 1 comes twice", "twice")
    record = tmp_path / "one" / "images.jsonl"
    for row, words in (
        ({"file": "../less/0.png", "prompt": "a", "seed": 1}, "lies outside"),
        ({"file": "9.png", "prompt": "a", "seed": 1}, "9.png is missing"),
        ({"file": "0.png", "prompt": "a"}, "seed is None"),
        ({"file": 3, "prompt": "a", "seed": 1}, "file is 3"),
    ):
        record.write_text(json.dumps(row) + "\n")
        check(words, "one")
    record.write_text("")
    check("names no image", "one")


# --- rewards --------------------------------------------------------------------------------------


def test_rewards_are_asked_once_whoever_brings_them(
    pipelines: dict[str, Path], prompts: Path, tmp_path: Path
) -> None:
    run = recipe("flux", pipelines["flux"], prompts)
    bright = {"name": "pixels", "statistic": "brightness"}
    other = run.model_validate(
        run.model_dump() | {"name": "other", "reward": bright | {"scale": 2.0}}
    )
    watching = run.model_validate(
        run.model_dump()
        | {
            "evaluate": {
                "rewards": {
                    "light": bright,
                    "redness": {"name": "pixels", "statistic": "saturation"},
                }
            }
        }
    )
    sources = [
        str(write_run_folder(tmp_path / name, each))
        for name, each in (("a", watching), ("b", other))
    ]
    candidates = open_candidates(sources, True, {})
    (tmp_path / "section.yaml").write_text("name: pixels\nstatistic: saturation\nscale: 3\n")
    found = eval_rewards(
        candidates,
        ["again={name: pixels, statistic: brightness}", f"colour={tmp_path / 'section.yaml'}"],
    )
    assert [(each.label, each.trained) for each in found] == [
        ("redness", ("tiny",)),
        ("brightness", ("other",)),
        ("redness-2", ()),
    ]
    mixed = {
        "name": "mix",
        "members": [
            {"label": "r", "reward": {"name": "pixels", "statistic": "redness"}},
            {"label": "l", "reward": bright},
        ],
    }
    mixture = run.model_validate(run.model_dump() | {"name": "mixed", "reward": mixed})
    candidates = open_candidates(
        [*sources, str(write_run_folder(tmp_path / "c", mixture))], False, {}
    )
    assert {each.label: each.trained for each in eval_rewards(candidates, [])}["redness"] == (
        "tiny",
        "mixed",
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("noequals", "write it as LABEL=RECIPE"),
        ("a b=x", "write it as LABEL=RECIPE"),
        ("a={name: pixels, statistic: nothing}", "statistic"),
        ("a={name: pixels", "is not YAML"),
        ("a=no/such/folder/at/all", "config.json|no such"),
    ],
)
def test_a_reward_that_cannot_be_read_is_named(text: str, words: str) -> None:
    with pytest.raises(DirectAlignError, match=words):
        eval_rewards([], [text])


def test_words_of_the_style_gap(runs: dict[str, str]) -> None:
    candidates = open_candidates([runs["one"]], False, {})
    assert gap_phrases(candidates, ["a"], ["b", "c"]).negative == ["b", "c"]
    assert gap_phrases(candidates, [], []).positive == ["Realistic photo"], (
        "the run has none of its own"
    )
    with pytest.raises(DirectAlignError, match="--positive and --negative"):
        gap_phrases(candidates, ["a"], [])
