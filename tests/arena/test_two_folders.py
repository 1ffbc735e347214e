"""Two folders to a vote, by the commands of the tutorial: captions, tokens, training, comparison,
arena, results."""

import csv
import re
from pathlib import Path

import pytest
import torch
import yaml
from arena_servers import running, vote
from PIL import Image
from typer.testing import CliRunner

from directalign.cli import app
from directalign.config.load import load_run
from directalign.config.presets import merged
from directalign.toyworld.scenes import draw_scenes, render
from document_commands import command_lines
from tiny_captioner import write_blip

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorials" / "your_taste.md"
SHORT = {
    "method": {"anchor": {"reference_updates": 1}},
    "train": {"num_steps": 2, "save_every": 2, "sample_every": 0, "sample_prompts": ["a red star"]},
    "data": {"batch_size": 2},
    "rollout": {"num_inference_steps": 2},
    "evaluate": {"every": 0, "num_samples": 4, "num_samples_during": 4},
}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """In the current folder: liked/ and disliked/, 24 scenes each, other scenes of equal names."""
    monkeypatch.chdir(tmp_path)
    for seed, (side, style) in enumerate({"liked": "photo", "disliked": "cg"}.items()):
        Path(side).mkdir()
        scenes = draw_scenes(24, torch.Generator().manual_seed(seed)).with_style(style)
        for number, image in enumerate(render(scenes, torch.Generator().manual_seed(seed))):
            pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(f"{side}/{number:03d}.png")
    return {"sdxl_srpo_lora": "world_srpo_lora", "blip": str(write_blip(Path("tiny_blip")))}


def shortened(recipe: Path) -> None:
    """The recipe with fewer steps and samples."""
    settings = merged(yaml.safe_load(recipe.read_text("utf-8")), SHORT)
    recipe.write_text(yaml.safe_dump(settings), "utf-8")


def call(words: list[str]) -> str:
    """Output of a successful command."""
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_tutorial_leads_from_two_folders_to_results(folders):
    """Names collide and captions are missing; the network that writes them is tiny and random."""
    lines = command_lines(TUTORIAL.read_text("utf-8"))
    steps = [[folders.get(word, word) for word in line[1:]] for line in lines]
    fit, train, compare, (arena, serve, source, *options), results = steps
    assert (arena, serve, results[:2]) == ("arena", "serve", ["arena", "results"])

    output = call(fit)
    for side in ("liked", "disliked"):
        assert f"{side}: 24 captions written by" in output
        assert len(list(Path(side).glob("*.txt"))) == 24
    assert output.count("without pairs") == 1
    assert re.search(r"\d+ of 24 images of one name have different captions", output)
    assert "next: directalign train taste.yaml" in output
    phrases = load_run("taste.yaml").method.control_phrases
    assert phrases.positive == ["taste.safetensors"]
    assert phrases.negative == ["taste.negative.safetensors"]

    shortened(Path("taste.yaml"))
    call(train)
    call(compare)
    assert Path("comparison/report.html").is_file()

    database = Path(options[options.index("--out") + 1])
    with running(Path(source), database) as server, server.joined("Ann") as client:
        state = client.get("/api/state").json()
        asked = 0
        while state["next"]:
            asked += 1
            state = vote(client, f"request-{asked}", state["next"][0]["task"], "left")
    assert asked == 4
    call(results)
    folder = Path(results[results.index("--out") + 1])
    assert (folder / "results.html").stat().st_size > 2000
    with (folder / "answers.csv").open(encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert len(rows) == 4 and {row["annotator"] for row in rows} == {"Ann"}
