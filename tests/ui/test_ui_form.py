"""The form of a recipe: its fields come from the schema, its YAML is what counts."""

import pytest

from directalign.config.load import RECIPES, load_run, load_text, recipe_names
from directalign.ui.form import Field, changed, form_of


def text_of(recipe: str) -> str:
    return (RECIPES / f"{recipe}.yaml").read_text(encoding="utf-8")


def fields_of(text: str) -> dict[str, Field]:
    return {field.key: field for section in form_of(text).sections for field in section.fields}


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_has_a_form_without_errors_that_changes_nothing(name):
    text = text_of(name)
    form = form_of(text)
    assert form.errors == {} and form.text == text
    fields = fields_of(text)
    assert {"name", "train.num_steps", "model.path", "method.name", "reward.name"} <= {*fields}
    assert changed(text, {key: field.value for key, field in fields.items()}) == text
    again = changed(text, {"seed": "7"})
    run = load_run(name)
    assert load_text(again, "again") == run.model_copy(update={"seed": 7})


def test_a_field_sets_one_key_and_an_empty_one_removes_it():
    text = text_of("world_srpo_lora")
    given = {
        "train.learning_rate": "2e-4",
        "train.ema_decay": "0.5",
        "train.deterministic": "true",
        "model.lora.rank": "",
        "data.prompts": "no",  # text, not a truth value
        "method.control_phrases.positive": "A photo: sharp\n\n 1e-4 ",
        "unknown.key": "1",
    }
    run = load_text(changed(text, given), "changed")
    assert (run.train.learning_rate, run.train.ema_decay) == (2e-4, 0.5)
    assert run.train.deterministic and run.model.lora.rank == 16 and run.data.prompts == "no"
    assert run.method.control_phrases.positive == ["A photo: sharp", "1e-4"]
    fields = fields_of(text)
    assert fields["model.lora.rank"].default == "16" and fields["train.num_steps"].default == ""
    assert fields["model.tune"].options == ["lora", "full"]


def test_another_method_has_its_own_fields():
    text = changed(text_of("world_srpo_lora"), {"method.name": "draft"})
    form = form_of(text)
    assert form.errors == {} and load_text(text, "changed").method.name == "draft"
    assert "method.branches" not in fields_of(text)


def test_values_of_a_preset_are_defaults():
    fields = fields_of(text_of("flux_srpo_lora_24gb"))
    phrases = fields["method.control_phrases.negative"]
    assert phrases.value == "" and "Oil" in phrases.default


def test_errors_are_at_their_keys():
    text = text_of("world_srpo_lora")
    wrong = changed(text, {"train.num_steps": "many", "model.tune": "both", "seed": "-1"})
    form = form_of(wrong.replace("batch_size: 8", "batchsize: 8"))
    assert {*form.errors} == {"train.num_steps", "model.tune", "seed", "data.batchsize"}
    assert 'got "many", and it should be a valid integer' in form.errors["train.num_steps"]
    assert {*form.other_errors} == {"data.batchsize"}
    assert form_of("model: [").sections == [] and "not a YAML" in form_of("model: [").errors[""]
    between = changed(text, {"early_stopping.patience": "2", "evaluate.every": "0"})
    assert "evaluate.every is 0" in form_of(between).errors[""]
