"""The configs of published models describe networks with the published numbers of parameters."""

from __future__ import annotations

import pytest

from directalign.config import Model
from directalign.families.loading import FAMILIES
from directalign.memory.architecture import REFERENCES, known, model_architecture

PUBLISHED = {  # millions
    "black-forest-labs/FLUX.1-dev": {"transformer": 11_901, "text_encoder": 123.1, "text_encoder_2": 4_762, "vae": 83.8},
    "stabilityai/stable-diffusion-3.5-large": {"transformer": 8_057, "text_encoder_2": 694.7, "text_encoder_3": 4_762},
    "stabilityai/stable-diffusion-3.5-medium": {"transformer": 2_243},
    "stabilityai/stable-diffusion-xl-base-1.0": {"unet": 2_567, "text_encoder_2": 694.7, "vae": 83.7},
    "stable-diffusion-v1-5/stable-diffusion-v1-5": {"unet": 859.5, "text_encoder": 123.1, "vae": 83.7},
    "Qwen/Qwen-Image": {"transformer": 20_430, "text_encoder": 8_292, "vae": 126.9},
    "Tongyi-MAI/Z-Image-Turbo": {"transformer": 6_155, "text_encoder": 4_022},
    "black-forest-labs/FLUX.2-klein-4B": {"transformer": 3_876, "text_encoder": 4_022},
}


@pytest.mark.parametrize("hub_id", PUBLISHED)
def test_a_published_model_has_its_published_size(hub_id: str) -> None:
    family = next(told["family"] for told in known().values() if hub_id in told["hub_ids"])
    found = model_architecture(Model(family=family, path=hub_id))
    assert found.state == "not downloaded yet" and found.doubts == ()
    for part, millions in PUBLISHED[hub_id].items():
        assert found.count(part) / 1e6 == pytest.approx(millions, rel=1e-3), part


def test_each_file_says_where_it_is_from_and_has_every_part() -> None:
    for name, told in known().items():
        assert told["source"].startswith("https://huggingface.co/") and told["hub_ids"], name
        family = FAMILIES.get(told["family"])
        wanted = {"reward"} if family is None else {family.part, "vae", *family.text_parts}
        assert set(told["parts"]) == wanted, name


def test_every_family_has_a_model_to_fall_back_on() -> None:
    assert set(REFERENCES) == {*FAMILIES, "clip"}
    for family, name in REFERENCES.items():
        assert known()[name]["family"] == family


def test_an_unknown_hub_id_is_taken_for_the_usual_model_and_says_so() -> None:
    found = model_architecture(Model(family="sd", path="someone/their-finetune"))
    assert found.count("unet") == 859_520_964
    assert found.doubts == (
        "model.path: someone/their-finetune is not downloaded yet and not known here: figures are those of stable-diffusion-v1-5/stable-diffusion-v1-5",
    )
