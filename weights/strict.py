"""From stored tensors to a network, strictly: every tensor it has, no other, each of its shape."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..errors import InputError
from .files import StoredTensor, open_tensors, shown

NAMED = 5  # tensors an error names


def load_part(make: Callable[[], nn.Module], path: Path) -> nn.Module:
    """A network and the one file that holds its tensors under its own names → the network, frozen, in float32.

    Raises InputError where the file is missing, broken or does not fit.
    """
    tensors = open_tensors(path)
    return fill(prepare(make, tensors, str(path)), tensors, "cpu", torch.float32)


def prepare(make: Callable[[], nn.Module], tensors: Mapping[str, StoredTensor], source: str) -> nn.Module:
    """The network without memory or values. Raises InputError, naming `source`, where the tensors do not fit."""
    with torch.device("meta"), _NoInitialisation():
        try:
            module = make()
        except (ValueError, IndexError) as error:
            raise InputError(f"{source} has sizes in its config that make no network: {error}") from None
    _check(module, tensors, source)
    return module


def fill(
    module: nn.Module, tensors: Mapping[str, StoredTensor], device: torch.device | str, dtype: torch.dtype
) -> nn.Module:
    """Gives a prepared network its tensors, one by one, and freezes it."""
    module.load_state_dict({name: tensor.read(device, dtype) for name, tensor in tensors.items()}, assign=True)
    return module.requires_grad_(False).eval()


def _check(module: nn.Module, tensors: Mapping[str, StoredTensor], source: str) -> None:
    """Every tensor of the network, no other, each of its shape, all floating-point."""
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    shapes = [
        f"{name} has shape {list(tensors[name].shape)}, wanted {list(wanted[name])}"
        for name in wanted.keys() & tensors.keys()
        if tensors[name].shape != wanted[name]
    ]
    integers = [name for name, tensor in tensors.items() if not tensor.is_weight]
    problems = [
        (sorted(wanted.keys() - tensors.keys()), "missing"),
        (sorted(tensors.keys() - wanted.keys()), "unknown"),
        (sorted(shapes), "of the wrong shape"),
        (sorted(integers), "not floating-point numbers"),
    ]
    said = "; ".join(f"{count(names)} {what}: {first(names)}" for names, what in problems if names)
    if said:
        raise InputError(f"{source} does not fit this {type(module).__name__}: {said}")


class _NoInitialisation(TorchFunctionMode):
    """Leaves parameters as they are made: initialising does nothing on the meta device but import a lot of PyTorch."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


def count(names: list) -> str:
    return "1 tensor is" if len(names) == 1 else f"{len(names)} tensors are"


def first(names: list[str]) -> str:
    """The first few, and a sign that there are more."""
    return ", ".join(map(shown, names[:NAMED])) + (", …" if len(names) > NAMED else "")
