"""How often the arena's intervals hold the truth, and how often it claims what is not so.

    python benchmarks/simulated_voters.py [--repeats 200] [--only NAME ...] [--out FILE]

Voters with a planted preference for one of two models, none or some: alike or with tastes of their
own, few, one with most of the votes, clickers of one side, ties, several seeds of a prompt. Every
repeat draws other people and other prompts. An interval should hold the truth in 90 to 99 % of the
repeats, and a preference that does not exist be claimed in 8 % at most.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from directalign.arena.records import Vote
from directalign.arena.results import is_clear
from directalign.arena.statistics import rank_models, win_rates
from directalign.training.run_folder import commit, machine, versions

MODELS = ("base", "tuned")
PREFERENCE = 0.6
"""Planted log-odds of a vote for `tuned`, for an average person on an average prompt."""


@dataclass(frozen=True)
class Voters:
    """A panel: `taste` and `prompt_taste` are deviations in log-odds between people and prompts.

    `answered` is the number of prompts of each annotator (all by default); a share `ties` of the
    votes is a tie, a share `left` goes to the left image, and `clickers` always take it.
    """

    annotators: int = 10
    prompts: int = 60
    seeds: int = 1
    taste: float = 0.0
    prompt_taste: float = 0.0
    answered: tuple[int, ...] = ()
    ties: float = 0.0
    left: float = 0.0
    clickers: int = 0

    def rate(self, preference: float, tastes: np.ndarray) -> float:
        """Expected share of votes for `tuned`, of people with these tastes, on all prompts."""
        points, weights = np.polynomial.hermite_e.hermegauss(40)
        odds = preference + tastes[:, None] + self.prompt_taste * points
        chance = float((1 / (1 + np.exp(-odds)) @ weights).mean() / weights.sum())
        share = (1 - self.ties) * (1 - self.left) * (1 - self.clickers / self.annotators)
        return 0.5 + share * (chance - 0.5)

    def votes(self, preference: float, seed: int) -> tuple[list[Vote], np.ndarray]:
        """Votes of newly drawn people on newly drawn prompts, and the tastes of these people."""
        rng = np.random.default_rng(seed)
        tastes = self.taste * rng.normal(size=self.annotators)
        prompts = self.prompt_taste * rng.normal(size=self.prompts)
        found = []
        for person in range(self.annotators):
            asked = self.answered[person] if self.answered else self.prompts
            for prompt in rng.choice(self.prompts, asked, replace=False).tolist():
                chance = 1 / (1 + np.exp(-preference - tastes[person] - prompts[prompt]))
                for repeat in range(self.seeds):
                    left, right = MODELS if rng.random() < 0.5 else MODELS[::-1]
                    winner = MODELS[int(rng.random() < chance)]
                    if person < self.clickers or rng.random() < self.left:
                        winner = left
                    decided = winner if rng.random() >= self.ties else None
                    item, name = prompt * self.seeds + repeat, f"person {person}"
                    found.append(Vote(name, item, left, right, decided, prompt=f"prompt {prompt}"))
        return found, tastes


SCENARIOS = {
    "alike": Voters(),
    "tastes of their own": Voters(taste=0.6, prompts=200),
    "other tastes per prompt too": Voters(taste=0.5, prompt_taste=0.8),
    "40 people, 20 of 60 prompts each": Voters(
        40, taste=0.6, prompt_taste=0.5, answered=(20,) * 40
    ),
    "6 people": Voters(6, taste=0.6, prompt_taste=0.5),
    "3 people": Voters(3, taste=0.6, prompt_taste=0.5),
    "one with 1,000 of 1,190 votes": Voters(20, 1000, taste=0.6, answered=(1000,) + (10,) * 19),
    "2 of 12 always left": Voters(12, taste=0.4, clickers=2),
    "40 % ties": Voters(taste=0.4, ties=0.4),
    "a quarter of the votes to the left": Voters(taste=0.4, left=0.25),
    "8 seeds of each of 20 prompts": Voters(prompts=20, seeds=8, taste=0.3, prompt_taste=0.8),
}


def simulate(voters: Voters, repeats: int) -> dict[str, float]:
    """Shares of the repeats in which intervals hold the truth and in which claims are wrong."""
    many = voters.taste * np.random.default_rng(0).normal(size=100_000)
    found: dict[str, list[bool]] = {}
    for planted, preference in (("none", 0.0), ("some", PREFERENCE)):
        truth = voters.rate(preference, many) if preference else 0.5
        for seed in range(repeats):
            votes, tastes = voters.votes(preference, seed)
            (wins,) = win_rates(votes, MODELS)
            strength = rank_models(votes, MODELS).difference(*MODELS)
            panel_truth, log_odds = voters.rate(preference, tastes), np.log(truth / (1 - truth))
            is_wrong = (wins.panel.value - 0.5) * (panel_truth - 0.5) < 0
            for name, value in {
                f"interval holds, {planted}": wins.rate.low <= truth <= wins.rate.high,
                f"strength holds, {planted}": strength.low <= log_odds <= strength.high,
                f"these people's, {planted}": wins.panel.low <= panel_truth <= wins.panel.high,
                f"claimed, {planted}": is_clear(wins),
                "wrong of these people": wins.p_panel < 0.05 and is_wrong,
            }.items():
                found.setdefault(name, []).append(bool(value))
    return {name: float(np.mean(values)) for name, values in found.items()}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--only", nargs="*", choices=SCENARIOS, default=[*SCENARIOS])
    out = Path("benchmarks/results/simulated_voters.json")
    parser.add_argument("--out", type=Path, default=out)
    given, rows = parser.parse_args(words), []
    for name in given.only:
        rows.append({"voters": name, **simulate(SCENARIOS[name], given.repeats)})
        print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    facts = {"seed": 0, "commit": commit(), "machine": machine(), "versions": versions()}
    result = {"rows": rows, "repeats": given.repeats, **facts}
    given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
