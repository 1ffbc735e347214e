"""The notebook's cells run in order, with fewer steps, and end with a LoRA that a fresh pipeline
loads."""

import json
import os
from pathlib import Path

import matplotlib

NOTEBOOK = Path(__file__).parents[2] / "examples" / "align_in_a_notebook.ipynb"
STEPS = "STEPS = 30"


def test_the_cells_run_in_order(tmp_path, monkeypatch):
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    cells = [each for each in notebook["cells"] if each["cell_type"] == "code"]
    code = "\n".join("".join(cell["source"]) for cell in cells)
    assert code.count(STEPS) == 1 and len(code.splitlines()) < 100
    assert all(cell["outputs"] for cell in cells if "".join(cell["source"]).endswith("look(pipe)"))
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    space = {}
    for cell in cells:
        source = "".join(cell["source"]).replace(STEPS, "STEPS = 2")
        exec(compile(source, NOTEBOOK.name, "exec"), space)
    assert len(space["rewards"]) == 2 and os.listdir(tmp_path) == ["my_lora"]  # noqa: PTH208
    images = [space[name].tobytes() for name in ("before", "after", "half")]
    assert len(set(images)) == 3
