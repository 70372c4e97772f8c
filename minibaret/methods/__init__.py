"""Every method, one file each; `METHODS` has them by name."""

from ..errors import InputError
from . import (
    baret,
    diffedit,
    direct,
    encode_decode,
    imagic,
    masactrl,
    negative_prompt,
    null_text,
    plug_and_play,
    prompt_to_prompt,
    prompt_tuning,
    sdedit,
    sine,
)
from .common import EditFunction, Job, Knobs, Method

MODULES = (
    *(baret, prompt_tuning),  # tune the target's embedding
    *(encode_decode, sdedit, diffedit),  # tune nothing and control no attention
    *(prompt_to_prompt, null_text, negative_prompt, direct),  # control attention as prompt-to-prompt does
    *(masactrl, plug_and_play),  # control it otherwise
    *(sine, imagic),  # tune a copy of the UNet
)
METHODS: dict[str, Method] = {module.METHOD.name: module.METHOD for module in MODULES}


def find(method: str | Method | Knobs | EditFunction) -> Method:
    """The method of that name or those knobs, or one made of a function `edit(sd, job, knobs)`. Raises InputError for
    another name."""
    if isinstance(method, Method):
        return method
    if isinstance(method, Knobs):
        method = next((each.name for each in METHODS.values() if each.knobs is type(method)), method)
    if callable(method):
        return Method(getattr(method, "__name__", "method"), "", "", method)
    if not isinstance(method, str) or method not in METHODS:
        raise InputError(f"a method must be one of {', '.join(METHODS)}, got {method!r}")
    return METHODS[method]


__all__ = ["METHODS", "Job", "Knobs", "Method", "find"]
