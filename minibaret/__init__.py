"""Edit a real picture from one sentence: BARET on Stable Diffusion 1.5.

import minibaret
editor = minibaret.load()
result = editor.edit("dog.png", "a brown dog lying down on grass")
result.image.save("edited.png")
"""

from .editor import Editor
from .errors import InputError
from .inversion import Inversion, load_inversion
from .loading import load
from .maps import MapRequest
from .memory import Savings
from .methods import METHODS
from .result import Result

__all__ = [
    "METHODS",
    "Editor",
    "InputError",
    "Inversion",
    "MapRequest",
    "Result",
    "Savings",
    "load",
    "load_inversion",
]
