"""bitsandbytes is for 4 bits only, but peft and diffusers import it wherever it is installed.

That takes a second and warns on a CPU, so a command hides it until a recipe asks for 4 bits.
"""

import sys

NAME = "bitsandbytes"
_hidden: set[str] = set()


def hide() -> None:
    """For this process, it is not installed. To be called before the libraries are imported."""
    if NAME not in sys.modules:
        sys.modules[NAME] = None  # pyright: ignore[reportArgumentType]
        _hidden.add(NAME)


def show() -> None:
    """It is installed again, if `hide` hid it. To be called before anything is rounded."""
    if NAME in _hidden:
        _hidden.remove(NAME)
        del sys.modules[NAME]
        if (peft := sys.modules.get("peft.import_utils")) is not None:
            peft.is_bnb_available.cache_clear()
            peft.is_bnb_4bit_available.cache_clear()
