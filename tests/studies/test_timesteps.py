"""Which window looks most hacked: the verdict on planted images, and the study in its quick size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from directalign.studies import STUDIES, hacking, run_study, timesteps
from directalign.studies.running.records import Row, read_rows

RECIPES = Path(__file__).parents[2] / "recipes"


def test_lost_content_goes_before_any_drift() -> None:
    lost = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    drifted = torch.tensor([[0.0, 0.1, 0.2], [9.0, 0.3, 0.2], [9.0, 0.2, 0.1]])
    shares = hacking.most_hacked(lost, drifted)
    assert torch.equal(shares, torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.0, 0.0, 0.0]]))


def test_among_those_that_lost_content_the_farthest_is_worst() -> None:
    shares = hacking.most_hacked(
        torch.tensor([[1.0], [1.0], [0.0]]), torch.tensor([[0.2], [0.3], [5.0]])
    )
    assert shares[:, 0].tolist() == [0.0, 1.0, 0.0]


def test_a_pair_that_nobody_touched_is_split_evenly() -> None:
    shares = hacking.most_hacked(torch.zeros(3, 4), torch.zeros(3, 4))
    assert torch.allclose(shares, torch.full((3, 4), 1 / 3)) and torch.allclose(
        shares.sum(0), torch.ones(4)
    )


def test_only_what_goes_beyond_the_base_image_is_drift() -> None:
    base = {"cast": torch.tensor([0.1, 0.3]), "saturation": torch.tensor([1.0, 1.0])}
    found = {"cast": torch.tensor([0.3, 0.1]), "saturation": torch.tensor([1.0, 2.0])}
    assert torch.allclose(hacking.excess_drift(found, base), torch.tensor([0.5, 0.5]))
    assert torch.equal(hacking.excess_drift(base, base), torch.zeros(2))


def test_distances_are_nothing_for_the_photograph_itself_and_see_a_tint() -> None:
    photographs = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 0.5 + 0.2
    same = hacking.distances(photographs, photographs)
    assert all(torch.equal(distance, torch.zeros(3)) for distance in same.values()) and set(
        same
    ) == set(hacking.DISTANCES)
    tinted = hacking.distances(
        photographs + torch.tensor([0.2, -0.1, -0.1])[:, None, None], photographs
    )
    assert torch.allclose(tinted["cast"], torch.full((3,), 0.06**0.5))
    softened = hacking.distances(0.5 * photographs, photographs)
    assert torch.allclose(softened["sharpness"], torch.full((3,), 4.0).log())


def test_windows_cover_the_scale_with_moves_of_one_gain() -> None:
    for form in timesteps.FORMS:
        arms = timesteps.arms_of_form(form)
        assert [arm.name for arm in arms] == [f"{form}_{window}" for window in timesteps.WINDOWS]
        assert all(f"gain: {timesteps.GAIN}" in arm.overrides[0] for arm in arms)
    assert STUDIES[timesteps.NAME] == timesteps.TITLE


def planted(window: str, share: float, seed: int, photo: float = 0.5) -> list[Row]:
    """A hacking row, and a run of two measurements."""
    named: Row = {"arm": f"absolute_{window}", "title": f"Direct-Align, {window}", "seed": seed}
    run = [
        {
            **named,
            "step": step,
            "photo_rate": rate,
            "content": 1.0,
            "color_drift": 0.1,
            "reward": 0.7,
        }
        for step, rate in ((0, 0.1), (30, photo))
    ]
    return [
        *run,
        {
            **named,
            "kind": "hacking",
            "form": "absolute",
            "share": share,
            "lost": 0.1,
            "drift": 0.2,
            "pairs": 128,
        },
    ]


def told(shares: dict[str, float], photo: float = 0.5) -> str:
    return timesteps.tell(
        [
            row
            for seed in range(3)
            for window, share in shares.items()
            for row in planted(window, share + 0.01 * seed, seed, photo)
        ]
    )


def test_the_text_names_the_worst_window_whichever_it_is() -> None:
    late = told({"early": 0.1, "late": 0.7, "full": 0.2})
    assert (
        "Trained in the late window the model looks most hacked: in 71 %" in late
        and "the paper reports 77 %" in late
    )
    early = told({"early": 0.6, "late": 0.1, "full": 0.3})
    assert "Trained in the early window" in early and "is so in 11 %" in early


def test_the_text_admits_chance_and_windows_that_never_rise() -> None:
    even = told({"early": 0.33, "late": 0.33, "full": 0.32}, photo=0.05)
    assert "does not exclude the third" in even and "never raises the photo rate" in even
    assert "first reaches a photo rate of 0.50" in told({"early": 0.1, "late": 0.7, "full": 0.2})


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_study(
        "timesteps", tmp_path_factory.mktemp("timesteps"), quick=True, recipes=RECIPES
    ).parent


def test_the_quick_study_leaves_rows_a_text_and_figures(shown: Path) -> None:
    rows = read_rows(shown / "results.jsonl")
    judged = [row for row in rows if row.get("kind") == "hacking"]
    assert {row["arm"] for row in judged} == {"absolute_early", "absolute_late", "absolute_full"}
    assert sum(row["share"] for row in judged) == pytest.approx(1) and all(
        row["pairs"] == 16 for row in judged
    )
    assert {file.name for file in shown.glob("*.png")} == {
        "timesteps_hacking.png",
        "timesteps_curves.png",
    }
    assert "| early | 0.75 to 0.98 |" in (shown / "README.md").read_text(encoding="utf-8")


def test_called_again_it_trains_and_looks_at_nothing(shown: Path) -> None:
    before = {
        file: file.stat().st_mtime_ns
        for file in (*shown.rglob("metrics.jsonl"), *shown.rglob("pieces/*"))
    }
    run_study("timesteps", shown, quick=True, recipes=RECIPES)
    assert len(before) == 5 and {file: file.stat().st_mtime_ns for file in before} == before
