"""Prompt lists: every format, every fault named with file and line, and an order without state."""

import json
import sys

import pytest

from directalign.data.prompts import PromptStream, read_prompts
from directalign.toyworld.scenes import (
    BACKGROUNDS,
    COLORS,
    SHAPES,
    all_captions,
    held_out_captions,
    train_captions,
)
from directalign.types import DirectAlignError

TWO = ["a red star", 'a sign that says "Peace, now"']


def test_text_lists_take_one_prompt_a_line_and_skip_blank_ones(tmp_path):
    file = tmp_path / "list.txt"
    file.write_bytes(b"\xef\xbb\xbf  a red star \r\n\r\n   \n" + TWO[1].encode())
    assert read_prompts(file) == TWO


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("a.txt", TWO),
        ("a.jsonl", [json.dumps({"prompt": text}) for text in TWO]),
        ("a.csv", ["prompt", TWO[0], '"a sign that says ""Peace, now"""']),
        ("a.tsv", ["prompt", *TWO]),
    ],
)
def test_lines_of_every_system(tmp_path, name, lines, end):
    (tmp_path / name).write_bytes(end.join([*lines, ""]).encode())
    assert read_prompts(tmp_path / name) == TWO


@pytest.mark.parametrize("key", ["prompt", "caption", "Text"])
def test_json_lines_know_three_keys(tmp_path, key):
    file = tmp_path / "list.jsonl"
    file.write_text(
        "\n".join(json.dumps({"id": 1, key: text}) for text in TWO) + "\n\n", encoding="utf-8"
    )
    assert read_prompts(str(file)) == TWO


PARTI = (
    "Prompt\tCategory\tChallenge\tNote\r\n"
    'Dogs playing poker\tAnimals\tImagination\tDescription of "Dogs Playing Poker"\r\n'
    "\t\t\t\r\n"
    '"G I G G L E" painted on a wall\tIllustrations\tWriting & Symbols\t\r\n'
    '"HI" and "HO"\tIllustrations\tWriting & Symbols\t\r\n'
    '"a sign that says ""OPEN"", lit"\tIndoor Scenes\tWriting & Symbols\t'
)
GENEVAL = (
    '{"tag": "counting", "include": [{"class": "clock", "count": 4}], '
    '"exclude": [{"class": "clock", "count": 5}], "prompt": "a photo of four clocks"}\n'
)
OCR = 'A sign, at dusk, that reads "Step Goal Achieved".\n"Forever Yours", engraved in a ring.\n'


PARTI_PROMPTS = [
    "Dogs playing poker",
    '"G I G G L E" painted on a wall',
    '"HI" and "HO"',
    'a sign that says "OPEN", lit',
]


@pytest.mark.parametrize(
    ("name", "content", "prompts"),
    [
        ("parti.tsv", PARTI, PARTI_PROMPTS),
        ("geneval.jsonl", GENEVAL, ["a photo of four clocks"]),
        ("ocr.txt", OCR, OCR.splitlines()),
    ],
)
def test_the_lists_of_the_field_are_read_as_they_are(tmp_path, name, content, prompts):
    (tmp_path / name).write_bytes(content.encode())
    assert read_prompts(tmp_path / name) == prompts


@pytest.mark.parametrize(
    ("name", "row"), [("a.csv", '{0},"{1}"'), ("a.tsv", "{0}\t{1}"), ("a.TSV", "{0}\t{1}")]
)
def test_tables_know_the_column(tmp_path, name, row):
    quoted = TWO[1].replace('"', '""') if name.endswith("csv") else TWO[1]
    file = tmp_path / name
    rows = row.format("id", "PROMPT"), row.format(1, TWO[0]), "", row.format(2, quoted)
    file.write_text("\n".join(rows), encoding="utf-8")
    assert read_prompts(file) == TWO


def test_parquet(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow", reason="parquet lists are an extra: directalign[data]")
    from pyarrow import parquet

    file = tmp_path / "list.parquet"
    parquet.write_table(pyarrow.table({"id": [1, 2, 3], "Prompt": [*TWO, None]}), file)
    assert read_prompts(file) == TWO
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(DirectAlignError, match=r"list\.parquet: not a readable parquet file"):
        read_prompts(file)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DirectAlignError, match=r"list\.parquet: .*'directalign\[data\]'"):
        read_prompts(file)


BROKEN = {
    "header_only.csv": (b"prompt,id\n", "no prompts"),
    "latin.txt": (b"a star\na caf\xe9\n", r":2: not UTF-8: byte 0xe9 at offset 12"),
    "long.txt": (b"a\n" + b"x" * 10_000, r":2: prompt of 10,000 characters; the limit is 2,000"),
    "nul.txt": (b"a\nb\0c\n", r":2: control character U\+0000 at character 2"),
    "half.jsonl": (b'{"prompt": "a \\ud83d star"}', r":1: not Unicode: U\+D83D without its other"),
    "broken.jsonl": (b'{"prompt": "a"}\n{"prompt": ', ":2: not JSON"),
    "other_key.jsonl": (b'{"title": "a"}', ":1: no key prompt, caption or text among 'title'"),
    "number.jsonl": (b'{"prompt": 3}', ":1: prompt is int 3, and text is needed"),
    "short_row.tsv": (b"id\tprompt\n1\ta\n2\n", ":3: 1 fields"),
    "long_row.csv": (b"prompt\na, star\n", ":2: 2 fields, and the header has 1; quote fields"),
    "long_cr_row.tsv": (b"prompt\ra\rb\tc\r", ":3: 2 fields, and the header has 1"),
    "two_lines.tsv": (b'prompt\tid\na\t1\n"b\nc"\t2\n', ":3: a quote opens a field and does not"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_list_is_one_line_that_names_file_and_place(tmp_path, name):
    content, complaint = BROKEN[name]
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(DirectAlignError, match=complaint) as raised:
        read_prompts(file)
    assert str(raised.value).startswith(str(file)) and "\n" not in str(raised.value)


def test_the_world_keeps_every_seventh_caption_for_measuring():
    assert read_prompts("world") == train_captions()
    assert (len(train_captions()), len(held_out_captions())) == (205, 35)
    assert sorted(train_captions() + held_out_captions()) == sorted(all_captions())
    assert held_out_captions()[1] == all_captions()[7]
    held_out = {word for caption in held_out_captions() for word in caption.split()}
    trained = {word for caption in train_captions() for word in caption.split()}
    assert {*COLORS, *SHAPES, *BACKGROUNDS} <= held_out & trained


def test_a_stream_started_anew_goes_on_exactly():
    def steps(first: int, last: int) -> list[tuple[str, ...]]:
        stream = PromptStream(train_captions()[:200], seed=3)
        places = range(0, 16, 4)
        return [stream.batch(step, 4, place, 16) for step in range(first, last) for place in places]

    assert steps(0, 40) == steps(0, 17) + steps(17, 40)
    assert len(set().union(*steps(0, 13))) == 200  # 13 steps of 16 prompts: a whole epoch
