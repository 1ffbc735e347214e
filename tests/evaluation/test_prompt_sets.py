"""The prompt sets of the field: recognised by what is in them, read with their groups and facts,
and refused by file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from directalign.data.prompts import read_prompts, train_captions
from directalign.evaluation.eval_prompts import RELATIONS, STYLES, PromptRow, read_prompt_set
from directalign.types import DirectAlignError

GENEVAL = [
    {
        "tag": "single_object",
        "include": [{"class": "kettle", "count": 1}],
        "prompt": "a photo of a kettle",
    },
    {
        "tag": "counting",
        "include": [{"class": "owl", "count": 3}],
        "exclude": [{"class": "owl", "count": 4}],
        "prompt": "a photo of three owls",
    },
    {
        "tag": "position",
        "include": [
            {"class": "lamp", "count": 1},
            {"class": "sofa", "count": 1, "position": ["left of", 0]},
        ],
        "prompt": "a photo of a sofa left of a lamp",
    },
    {
        "tag": "color_attr",
        "include": [
            {"class": "mug", "count": 1, "color": "green"},
            {"class": "tray", "count": 1, "color": "white"},
        ],
        "prompt": "a photo of a green mug and a white tray",
    },
]
DRAWBENCH = (
    "Prompts,Category\r\nA teal violin.,Colors\r\n"
    '"A sign that says ""Open, now"".",Text\r\nThree bees.,Counting\r\n'
)
PARTI = (
    "Prompt\tCategory\tChallenge\tNote\r\nsilence\tAbstract\tBasic\t\r\n\t\t\t\r\n"
    '"HI" and "HO"\tIllustrations\tWriting & Symbols\tquotes\r\n'
)


def write(file: Path, content: str | list[dict[str, object]] | list[str]) -> Path:
    lines = "\n".join(json.dumps(row) for row in content) if isinstance(content, list) else content
    file.write_text(
        json.dumps(content) if file.suffix == ".json" else lines, encoding="utf-8", newline=""
    )
    return file


def test_geneval_keeps_what_the_image_must_show(tmp_path: Path):
    read = read_prompt_set(write(tmp_path / "evaluation_metadata.jsonl", GENEVAL))
    assert read.form == "geneval" and read.prompts == tuple(row["prompt"] for row in GENEVAL)
    assert read.groups == ("single_object", "counting", "position", "color_attr") and len(read) == 4
    assert read.rows[1].facts == {
        "tag": "counting",
        "include": [{"class": "owl", "count": 3}],
        "exclude": [{"class": "owl", "count": 4}],
    }
    assert (
        read.rows[2].facts["include"][1]["position"] == ["left of", 0]
        and read.rows[2].facts["exclude"] == []
    )
    assert read.rows[3].facts["include"][0] == {"class": "mug", "count": 1, "color": "green"}


@pytest.mark.parametrize("name", ["{}.json", "benchmark_{}.json"])
def test_hpdv2_is_a_folder_with_a_list_for_each_style(tmp_path: Path, name: str):
    for place, style in enumerate(reversed(STYLES)):
        write(tmp_path / name.format(style), [f"{style} {number}" for number in range(place + 1)])
    (tmp_path / "drawbench.json").write_text("not read")
    read = read_prompt_set(tmp_path)
    assert (read.form, read.groups) == ("hpdv2", STYLES)
    assert [row.prompt for row in read.rows if row.group == "anime"] == [
        "anime 0",
        "anime 1",
        "anime 2",
        "anime 3",
    ]
    one = read_prompt_set(tmp_path / name.format("paintings"))
    assert one.rows == tuple(row for row in read.rows if row.group == "paintings")


def test_tables_are_told_apart_by_their_columns(tmp_path: Path):
    drawbench = read_prompt_set(write(tmp_path / "prompts.csv", DRAWBENCH))
    assert drawbench.form == "drawbench" and drawbench.groups == ("Colors", "Text", "Counting")
    assert drawbench.rows[1] == PromptRow('A sign that says "Open, now".', "Text")
    parti = read_prompt_set(write(tmp_path / "prompts.tsv", PARTI))
    assert parti.form == "parti" and parti.rows == (
        PromptRow("silence", "Abstract"),
        PromptRow('"HI" and "HO"', "Illustrations"),
    )
    plain = read_prompt_set(write(tmp_path / "other.tsv", "caption\tid\none\t1\n"))
    assert plain.form == "plain" and plain.rows == (PromptRow("one"),)


def test_whatever_read_prompts_takes_is_a_set_without_groups(tmp_path: Path):
    listed = write(tmp_path / "list.txt", "one\n\ntwo\n")
    assert read_prompt_set(str(listed)).prompts == tuple(read_prompts(listed)) == ("one", "two")
    plain = write(tmp_path / "list.jsonl", [{"prompt": "one", "tag": "mine"}])
    read = read_prompt_set(plain)
    assert (read.form, read.groups, read.rows[0].facts) == ("plain", (), {})
    assert read_prompt_set("world").prompts == tuple(train_captions())


def test_a_form_may_be_said(tmp_path: Path):
    table = write(tmp_path / "table.csv", "id,Prompt,Category\n1,a bee,Animals\n")
    assert read_prompt_set(table).rows == (PromptRow("a bee"),)
    assert read_prompt_set(f"parti:{table}").rows == (PromptRow("a bee", "Animals"),)
    listed = write(tmp_path / "mine.json", ["a", "b"])
    assert read_prompt_set(f"hpdv2:{listed}").groups == ("mine",)
    with pytest.raises(
        DirectAlignError, match=r"table.csv:1: no column Prompts among 'id', 'prompt', 'category'"
    ):
        read_prompt_set(f"drawbench:{table}")
    with pytest.raises(DirectAlignError, match=r"list.jsonl:1: tag is None"):
        read_prompt_set(f"geneval:{write(tmp_path / 'list.jsonl', [{'prompt': 'one'}])}")
    with pytest.raises(DirectAlignError, match="no such prompt set"):
        read_prompt_set(f"geneval:{tmp_path / 'missing.jsonl'}")


def test_the_readers_agree_with_read_prompts_on_the_prompts(tmp_path: Path):
    for file in (write(tmp_path / "a.jsonl", GENEVAL), write(tmp_path / "b.tsv", PARTI)):
        assert list(read_prompt_set(file).prompts) == read_prompts(file)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tag": 3}, "tag is 3"),
        ({"include": []}, "include is missing or empty"),
        ({"include": "dog"}, "include is str"),
        ({"include": ["dog"]}, r"include\[0\] is str"),
        ({"include": [{"count": 1}]}, r"include\[0\].class is None"),
        ({"include": [{"class": "dog", "count": True}]}, r"include\[0\].count is True"),
        ({"include": [{"class": "dog", "count": 0}]}, r"include\[0\].count is 0"),
        ({"include": [{"class": "dog", "count": 1, "color": 7}]}, r"include\[0\].color is 7"),
        (
            {"include": [{"class": "dog", "count": 1, "position": ["above", 0]}]},
            r"include\[0\].position",
        ),
        ({"exclude": [{"class": "dog"}]}, r"exclude\[0\].count is None"),
        ({"prompt": None}, "prompt is NoneType"),
        ({"prompt": "x" * 3000}, "prompt of 3,000 characters"),
    ],
)
def test_a_line_of_geneval_that_is_not_as_it_should_be_is_named(
    tmp_path: Path, change: dict[str, object], says: str
):
    file = write(tmp_path / "bad.jsonl", [GENEVAL[0], {**GENEVAL[1], **change}])
    with pytest.raises(DirectAlignError, match=rf"bad.jsonl:2: {says}"):
        read_prompt_set(file)


def test_a_position_names_an_earlier_object_and_a_known_relation(tmp_path: Path):
    def line(relation: object, of: object) -> dict[str, object]:
        return {
            "tag": "position",
            "include": [
                {"class": "a", "count": 1},
                {"class": "b", "count": 1, "position": [relation, of]},
            ],
            "prompt": "x",
        }

    assert (
        len(
            read_prompt_set(
                write(tmp_path / "good.jsonl", [line(relation, 0) for relation in RELATIONS])
            )
        )
        == 4
    )
    for relation, of in (("beside", 0), ("above", 1), ("above", "0")):
        with pytest.raises(DirectAlignError, match=r"include\[1\].position"):
            read_prompt_set(write(tmp_path / "bad.jsonl", [line(relation, of)]))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("anime.json", '["a",\n "b"', r"anime.json:2: not JSON"),
        ("anime.json", '{"a": 1}', r"anime.json:1: dict instead of a list"),
        ("anime.json", '["a", 3]', r"anime.json: item 2: int instead of a prompt"),
        ("anime.json", '["a", "b\\u0000"]', r"anime.json: item 2: control character"),
        ("anime.json", "[]", r"no prompts in it"),
        (
            "bench.csv",
            "Prompts,Category\na bee,Counting\nb\n",
            r"bench.csv:3: 1 fields, and Prompts and Category are fields 1 and 2",
        ),
        ("bench.csv", 'Prompts,Category\n"a bee,Counting\n', r"bench.csv:\d: not a table"),
        (
            "bench.jsonl",
            '{"tag": "x", "include": [{"class": "a", "count": 1}], "prompt": "a"}\n{',
            r"bench.jsonl:2: not JSON",
        ),
        ("bench.txt", "\n\n", r"no prompts in it"),
    ],
)
def test_broken_files_are_refused_by_file_and_line(
    tmp_path: Path, name: str, content: str, says: str
):
    (tmp_path / name).write_text(content)
    with pytest.raises(DirectAlignError, match=says):
        read_prompt_set(tmp_path / name)


def test_a_folder_without_styles_is_refused(tmp_path: Path):
    with pytest.raises(
        DirectAlignError, match=r"holds no anime.json, concept-art.json, paintings.json, photo.json"
    ):
        read_prompt_set(tmp_path)
