"""Edits: prompts with the images that they edit, in batches of any layout; faults by line, key."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import train_stubs as stubs
from PIL import Image

from directalign.config import DataConfig
from directalign.data.edits import scan_edits
from directalign.training.data import open_data
from directalign.training.distributed import TorchProcessGroup
from directalign.types import Batch, DirectAlignError

COUNT = 4


def picture(file: Path, level: int, size: tuple[int, int] = (8, 8)) -> str:
    Image.fromarray(np.full((*size, 3), level, np.uint8)).save(file)
    return file.name


@pytest.fixture
def folder(tmp_path):
    """Sources of the levels 0, 10, ..., their targets 100 brighter; every second with a mask."""
    rows = []
    for n in range(COUNT):
        row: dict[str, Any] = {"prompt": f"level {10 * n}"}
        row["source"] = picture(tmp_path / f"{n}.png", 10 * n)
        row["target"] = picture(tmp_path / f"{n}_target.png", 10 * n + 100)
        if n % 2:
            mask = np.zeros((8, 8), np.uint8)
            mask[:, :4] = 255
            Image.fromarray(mask).save(tmp_path / f"{n}_mask.png")
            row["mask"] = f"{n}_mask.png"
        rows.append(row)
    (tmp_path / "edits.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def batches(
    folder: Path, steps: range, ranks: int = 1, batch_size: int = 1, **data: Any
) -> list[Batch]:
    """Of global batches of two, by step and offset."""
    run = stubs.make_run(folder / "prompts.txt", batch_size=batch_size, global_batch_size=2)
    given = {"edits": str(folder / "edits.jsonl"), "batch_size": batch_size, **data}
    run = run.model_copy(update={"data": DataConfig.model_validate(given)})
    opened = [
        open_data(run, stubs.StubModel(), TorchProcessGroup(rank, ranks)) for rank in range(ranks)
    ]
    found = [each for step in steps for data in opened for each in data.batches(step)]
    return sorted(found, key=lambda batch: (batch.step, batch.offset))


def check_row(prompt: str, image: torch.Tensor, mask: torch.Tensor) -> None:
    level = int(prompt.split()[-1])
    half = torch.full((4,), float(level // 10 % 2))
    torch.testing.assert_close(image, torch.full_like(image, level / 255))
    columns = mask.mean((0, 1))
    torch.testing.assert_close(columns, torch.cat([half, torch.zeros(4)]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("ranks", "batch_size"), [(1, 1), (1, 2), (2, 1)])
def test_rollouts_have_the_source_of_each_prompt(folder, ranks, batch_size):
    found = batches(folder, range(4), ranks, batch_size, buckets=[[8, 8]])
    rows = []
    for batch in found:
        assert batch.images is None and batch.image_size == (8, 8) and batch.sources is not None
        assert len(batch.prompts) == batch_size
        for row in zip(batch.prompts, batch.sources.images, batch.sources.masks, strict=True):
            check_row(*row)
            rows.append(row[0])
    assert rows == [prompt for batch in batches(folder, range(4)) for prompt in batch.prompts]
    assert set(rows) == {f"level {10 * n}" for n in range(COUNT)}


def test_targets_are_trained_on_offline_and_edits_afterwards(folder):
    first, _, second, _ = batches(folder, range(2), edit_targets=True, offline_steps=1)
    assert first.images is not None and first.sources is not None and second.sources is not None
    assert second.images is None and second.rollout == 1
    brighter = first.sources.images + 100 / 255
    torch.testing.assert_close(first.images, brighter, atol=1e-6, rtol=0)
    always = batches(folder, range(3), edit_targets=True)
    assert all(batch.images is not None and batch.sources is not None for batch in always)


ROW = {"prompt": "a", "source": "0.png"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, "edits.jsonl:1: source is None, and the path of an image is needed"),
        ({**ROW, "mask": 3}, "edits.jsonl:1: mask is 3, and the path"),
        ({"source": "0.png"}, "edits.jsonl:1: .*prompt"),
        ({**ROW, "source": "gone.png"}, "line 1 .*: source .*gone.png: no such file"),
        ({**ROW, "mask": "gone.png"}, "line 1 .*: mask .*gone.png: no such file"),
        ({**ROW, "mask": "wide.png"}, "line 1 .*: mask .*wide.png: not of the size of its source"),
    ],
)
def test_a_fault_is_named_by_line_and_key(folder, row, message):
    picture(folder / "wide.png", 0, (8, 9))
    file = folder / "edits.jsonl"
    file.write_text(json.dumps(row))
    with pytest.raises(DirectAlignError, match=message):
        scan_edits(file, strict=True)
    with pytest.raises(DirectAlignError, match=message):  # no other line is left
        scan_edits(file)


def test_a_missing_target_and_a_missing_file_are_refused(folder):
    file = folder / "edits.jsonl"
    file.write_text(json.dumps(ROW))
    with pytest.raises(DirectAlignError, match=r"edits.jsonl:1: target is None"):
        scan_edits(file, targets=True)
    with pytest.raises(DirectAlignError, match=r"other.jsonl: no such edits file"):
        scan_edits(folder / "other.jsonl")


def test_a_resume_notices_another_source(folder):
    def fingerprint() -> str:
        run = stubs.make_run(folder / "prompts.txt", batch_size=1, global_batch_size=1)
        given = {"edits": str(folder / "edits.jsonl"), "batch_size": 1}
        run = run.model_copy(update={"data": DataConfig.model_validate(given)})
        return open_data(run, stubs.StubModel(), TorchProcessGroup(0, 1)).fingerprint

    before, edits = fingerprint(), folder / "edits.jsonl"
    assert fingerprint() == before
    edits.write_text(edits.read_text().replace('"0.png"', '"1.png"'))
    assert fingerprint() != before
