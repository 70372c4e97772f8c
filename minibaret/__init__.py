"""Edit a real picture from one sentence: BARET on Stable Diffusion 1.5.

import minibaret
editor = minibaret.load()
result = editor.edit("dog.png", "a brown dog lying down on grass")
result.image.save("edited.png")
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .editor import Editor
    from .errors import InputError
    from .inversion import Inversion, load_inversion
    from .loading import load
    from .maps import MapRequest
    from .memory import Savings
    from .methods import METHODS
    from .result import Result

HOMES = {  # imported when they are asked for: PyTorch takes a second, in which a command could not be stopped
    "METHODS": "methods",
    "Editor": "editor",
    "InputError": "errors",
    "Inversion": "inversion",
    "MapRequest": "maps",
    "Result": "result",
    "Savings": "memory",
    "load": "loading",
    "load_inversion": "inversion",
}

__all__ = ["METHODS", "Editor", "InputError", "Inversion", "MapRequest", "Result", "Savings", "load", "load_inversion"]


def __getattr__(name: str):
    if name not in HOMES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(f".{HOMES[name]}", __name__), name)
