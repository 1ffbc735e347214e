"""Load an object from a Python file of the user: "my.py:Thing" in a recipe."""

import importlib.util
from pathlib import Path
from typing import Any

from ..errors import DirectAlignError


def load_object(path: str, key: str, what: str = "function or class") -> Any:
    """Run the file of "file.py:name" and return the object called `name`.

    `key` is the recipe key that errors name, `what` the kind of object that is expected.
    Raises DirectAlignError for another form, for a missing file or name, and for a file that fails.
    """
    file, separator, name = path.rpartition(":")
    if not (separator and file and name):
        raise DirectAlignError(f"{key}: {path!r} names no {what}; write file.py:{what.split()[0]}")
    if not (file.endswith(".py") and Path(file).is_file()):
        raise DirectAlignError(
            f"{key}: {file}: no such Python file; write file.py:name, relative to the working "
            "directory"
        )
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # any error of the user's code
        raise DirectAlignError(
            f"{key}: {file} cannot be run ({type(error).__name__}: {error}); "
            f"check it with python {file}"
        ) from error
    if name not in vars(module):
        raise DirectAlignError(
            f"{key}: {file} has no {what} {name!r}; define it at the top level of the file"
        )
    return vars(module)[name]
