"""The prompt sets of benchmarks: recognised by content, read with their groups and facts, and
refused by file and line."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from directalign.data.prompts import read_prompts
from directalign.evaluation.eval_prompts import RELATIONS, STYLES, PromptRow, read_prompt_set
from directalign.toyworld.scenes import train_captions
from directalign.types import DirectAlignError

Row = dict[str, Any]


def thing(name: str, count: Any = 1, **more: Any) -> Row:
    return {"class": name, "count": count, **more}


OWLS = {"include": [thing("owl", 3)], "exclude": [thing("owl", 4)]}
SOFA = thing("sofa", position=["left of", 0])
MUG, TRAY = thing("mug", color="green"), thing("tray", color="white")
GENEVAL: list[Row] = [
    {"tag": "single_object", "include": [thing("kettle")], "prompt": "a photo of a kettle"},
    {"tag": "counting", **OWLS, "prompt": "a photo of three owls"},
    {"tag": "position", "include": [thing("lamp"), SOFA], "prompt": "a sofa left of a lamp"},
    {"tag": "color_attr", "include": [MUG, TRAY], "prompt": "a green mug and a white tray"},
]
DRAWBENCH = (
    "Prompts,Category\r\nA teal violin.,Colors\r\n"
    '"A sign that says ""Open, now"".",Text\r\nThree bees.,Counting\r\n'
)
PARTI = (
    "Prompt\tCategory\tChallenge\tNote\r\nsilence\tAbstract\tBasic\t\r\n\t\t\t\r\n"
    '"HI" and "HO"\tIllustrations\tWriting & Symbols\tquotes\r\n'
)


def write(file: Path, content: str | Sequence[Any]) -> Path:
    """Text as it is, a list as JSON or as JSON lines."""
    if not isinstance(content, str):
        lines = "\n".join(json.dumps(row) for row in content)
        content = json.dumps(content) if file.suffix == ".json" else lines
    file.write_text(content, encoding="utf-8", newline="")
    return file


def groups(rows: Sequence[PromptRow]) -> tuple[str | None, ...]:
    return tuple(dict.fromkeys(row.group for row in rows if row.group is not None))


def test_geneval_brings_the_facts_of_its_prompts(tmp_path):
    file = write(tmp_path / "evaluation_metadata.jsonl", GENEVAL)
    found = read_prompt_set(file)
    assert [row.prompt for row in found] == [row["prompt"] for row in GENEVAL] == read_prompts(file)
    assert groups(found) == ("single_object", "counting", "position", "color_attr")
    facts = [row.facts for row in found]
    assert facts[1] == {"tag": "counting", **OWLS}
    assert facts[2]["include"] == [thing("lamp"), SOFA] and facts[2]["exclude"] == []
    assert facts[3]["include"] == [MUG, TRAY]


@pytest.mark.parametrize("name", ["{}.json", "benchmark_{}.json"])
def test_hpdv2_is_a_folder_with_a_list_for_each_style(tmp_path, name):
    for place, style in enumerate(reversed(STYLES)):
        write(tmp_path / name.format(style), [f"{style} {number}" for number in range(place + 1)])
    (tmp_path / "drawbench.json").write_text("not read")
    found = read_prompt_set(tmp_path)
    assert groups(found) == STYLES
    anime = [row.prompt for row in found if row.group == "anime"]
    assert anime == ["anime 0", "anime 1", "anime 2", "anime 3"]
    single = read_prompt_set(tmp_path / name.format("paintings"))
    assert single == tuple(row for row in found if row.group == "paintings")


def test_tables_are_recognised_by_their_columns(tmp_path):
    found = read_prompt_set(write(tmp_path / "prompts.csv", DRAWBENCH))
    assert groups(found) == ("Colors", "Text", "Counting")
    assert found[1] == PromptRow('A sign that says "Open, now".', "Text")
    file = write(tmp_path / "prompts.tsv", PARTI)
    rows = PromptRow("silence", "Abstract"), PromptRow('"HI" and "HO"', "Illustrations")
    found = read_prompt_set(file)
    assert found == rows and [row.prompt for row in found] == read_prompts(file)


def test_other_sources_are_sets_without_groups(tmp_path):
    plain = read_prompt_set(write(tmp_path / "other.tsv", "caption\tid\none\t1\n"))
    assert plain == (PromptRow("one"),)
    listed = write(tmp_path / "list.txt", "one\n\ntwo\n")
    rows = read_prompt_set(str(listed))
    assert [row.prompt for row in rows] == read_prompts(listed) == ["one", "two"]
    found = read_prompt_set(write(tmp_path / "list.jsonl", [{"prompt": "one", "tag": "mine"}]))
    assert found == (PromptRow("one"),)
    assert [row.prompt for row in read_prompt_set("world")] == train_captions()


def test_the_form_may_be_given(tmp_path):
    table = write(tmp_path / "table.csv", "id,Prompt,Category\n1,a bee,Animals\n")
    assert read_prompt_set(table) == (PromptRow("a bee"),)
    assert read_prompt_set(f"parti:{table}") == (PromptRow("a bee", "Animals"),)
    listed = write(tmp_path / "mine.json", ["a", "b"])
    assert groups(read_prompt_set(f"hpdv2:{listed}")) == ("mine",)
    columns = r"table.csv:1: no column Prompts among 'id', 'prompt', 'category'"
    plain = write(tmp_path / "list.jsonl", [{"prompt": "one"}])
    for source, words in (
        (f"drawbench:{table}", columns),
        (f"geneval:{plain}", r"list.jsonl:1: tag is missing"),
        (f"geneval:{tmp_path / 'missing.jsonl'}", "no such prompt set"),
    ):
        with pytest.raises(DirectAlignError, match=words):
            read_prompt_set(source)


def placed(relation: object, target: object) -> list[Row]:
    return [thing("a"), thing("b", position=[relation, target])]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tag": 3}, "tag is 3"),
        ({"include": []}, "include is "),
        ({"include": "dog"}, "include is 'dog'"),
        ({"include": ["dog"]}, r"include\[0\] is 'dog'"),
        ({"include": [{"count": 1}]}, r"include\[0\].class is missing"),
        ({"include": [thing("dog", True)]}, r"include\[0\].count is True"),
        ({"include": [thing("dog", 0)]}, r"include\[0\].count is 0"),
        ({"include": [thing("dog", color=7)]}, r"include\[0\].color is 7"),
        ({"include": [thing("dog", position=["above", 0])]}, r"include\[0\].position"),
        ({"include": placed("beside", 0)}, r"include\[1\].position"),
        ({"include": placed("above", 1)}, r"include\[1\].position"),
        ({"include": placed("above", "0")}, r"include\[1\].position"),
        ({"exclude": [{"class": "dog"}]}, r"exclude\[0\].count is missing"),
        ({"prompt": None}, "prompt is NoneType"),
        ({"prompt": "x" * 3000}, "prompt of 3,000 characters"),
    ],
)
def test_invalid_lines_of_geneval_are_named(tmp_path, change, words):
    valid = [{**GENEVAL[1], "include": placed(relation, 0)} for relation in RELATIONS]
    file = write(tmp_path / "bad.jsonl", [*valid, {**GENEVAL[1], **change}])
    with pytest.raises(DirectAlignError, match=rf"bad.jsonl:5: {words}"):
        read_prompt_set(file)


FIELDS = r"bench.csv:3: 1 fields, and Prompts and Category are fields 1 and 2"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "anime.json",
            '["a",\n "b"',
            r"anime.json: Invalid JSON: EOF while parsing a list at line 2",
        ),
        ("anime.json", '{"a": 1}', r"anime.json: Input should be a valid .*(list|array)"),
        ("anime.json", '["a", 3]', r"anime.json: item 2: Input should be a valid string"),
        ("anime.json", '["a", "b\\u0000"]', r"anime.json: item 2: control character"),
        ("anime.json", "[]", r"no prompts in it"),
        ("bench.csv", "Prompts,Category\na bee,Counting\nb\n", FIELDS),
        ("bench.csv", 'Prompts,Category\n"a bee,Counting\n', r"bench.csv:\d: not a table"),
        ("bench.jsonl", json.dumps(GENEVAL[0]) + "\n{", r"bench.jsonl:2: not JSON"),
        ("bench.txt", "\n\n", r"no prompts in it"),
        ("", "", r"holds no anime.json, concept-art.json, paintings.json, photo.json"),
    ],
)
def test_broken_files_are_refused_by_file_and_line(tmp_path, name, content, words):
    if name:
        (tmp_path / name).write_text(content)
    with pytest.raises(DirectAlignError, match=words):
        read_prompt_set(tmp_path / name)
