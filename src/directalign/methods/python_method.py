"""A method of the user's own: `method: {name: python, path: my_method.py:MyMethod, args: {...}}`.

The class is called with (model, reward, settings, rollout, **args) and is an `interfaces.Method`.
"""

from __future__ import annotations

from ..config import PythonMethodConfig, RolloutConfig
from ..interfaces import Method, Model, Reward
from ..io.user_code import load_object
from ..types import DirectAlignError


def python_method(
    model: Model, reward: Reward, settings: PythonMethodConfig, rollout: RolloutConfig
) -> Method:
    """An instance of the user's class; raises DirectAlignError if it fails or is no method."""
    key = f"method.path: {settings.path}"
    made = load_object(settings.path, "method.path", "class")
    try:
        method = made(model, reward, settings, rollout, **settings.args)
    except (TypeError, AttributeError) as error:
        raise DirectAlignError(
            f"{key} cannot be constructed with (model, reward, settings, rollout) and "
            f"method.args {settings.args} ({error}); correct the class"
        ) from error
    missing = [
        name
        for name in ("losses", "state_dict", "load_state_dict")
        if not callable(getattr(method, name, None))
    ]
    if missing:
        raise DirectAlignError(f"{key} has no method {missing[0]}(); see interfaces.Method")
    return method
