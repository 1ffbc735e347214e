"""The JSON schema of a recipe, for editors that complete and check YAML. Imports no torch."""

from __future__ import annotations

from typing import Any

from .run import RunConfig


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of a recipe, in which a preset may replace the method section."""
    schema = _one_line_descriptions(RunConfig.model_json_schema())
    schema["required"].remove("method")
    schema["anyOf"] = [{"required": ["method"]}, {"required": ["preset"]}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _one_line_descriptions(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_one_line_descriptions(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: " ".join(value.split())
        if key == "description" and isinstance(value, str)
        else _one_line_descriptions(value)
        for key, value in schema.items()
    }
