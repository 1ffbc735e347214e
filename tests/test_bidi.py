"""Outside texts of the other direction turn nothing that stands beside them."""

import pytest

from directalign.io.text import isolated

RLO, FSI, PDI = "\u202e", "\u2068", "\u2069"


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (f"{RLO}model", f"{RLO}model"),
        ("\u05d0\u05d1", "\u05d0\u05d1"),
        ("\u0661\u0662", "\u0661\u0662"),
        (f"{PDI}{RLO}x{FSI}", f"{RLO}x"),
        (f"{FSI}\u05d0{PDI} {RLO}", f"\u05d0 {RLO}"),
    ],
)
def test_texts_of_another_direction_are_isolated_once(text, inside):
    assert isolated(text) == f"{FSI}{inside}{PDI}" == isolated(isolated(text))
    assert isolated(f"{isolated(text)} wins 70.6 %") == f"{isolated(text)} wins 70.6 %"


@pytest.mark.parametrize("text", ["", "model", "Müller", "\u6a21\u578b", "a\u0301"])
def test_others_stay(text):
    assert isolated(text) == text
