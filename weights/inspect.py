"""What a path holds and whether it would load, in words: `minibaret inspect`."""

from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

from ..errors import InputError
from ..models.configs import SD15, ModelConfig
from .detect import Checkpoint, find_checkpoint
from .files import StoredTensor, open_tensors, shown
from .loading import prepare_network
from .strict import NAMED, first
from .vocabulary import find_tokenizer, read_tokenizer_at


def inspect(
    path: Path, variant: str | None = None, tokenizer: Path | None = None, sizes: ModelConfig = SD15
) -> Iterator[str]:
    """Lines of a report on the weights at a path; reads headers only, no weights. See `load_model` for the arguments.

    Raises InputError, after the lines that can be said, where `load_model` would raise it.
    """
    try:
        checkpoint = find_checkpoint(path, variant, sizes)
    except InputError:
        yield from _contents(path)
        raise
    yield f"{path}: {checkpoint.layout}"
    yield from _parts(checkpoint)
    for name, digest in checkpoint.config.origin.items():
        yield f"  {'converted':<13} from {shown(name)}, SHA-256 {shown(digest)}"
    for part in checkpoint.parts:
        prepare_network(checkpoint, part)
    file = find_tokenizer(path, tokenizer)
    clip = read_tokenizer_at(file, checkpoint.config.text_encoder.vocabulary)
    yield f"  {'tokenizer':<13} {clip.size:>7,} entries  {file}"
    yield f"would load, as {checkpoint.config.name}"


def _parts(checkpoint: Checkpoint) -> Iterator[str]:
    for part, tensors in checkpoint.parts.items():
        files = sorted({str(tensor.path) for tensor in tensors.values()})
        yield _line(part, tensors, first(files) if checkpoint.path.is_dir() else "")
    if checkpoint.unet_is:
        yield f"  the UNet is {checkpoint.unet_is}"
    if checkpoint.dropped:
        names = ", ".join(_in_groups(checkpoint.dropped))
        yield f"  {'dropped':<13} {len(checkpoint.dropped):>7,} tensors  {names}"


def _in_groups(names: list[str]) -> Iterator[str]:
    """The names in order, those before whose first dot stands the same as one where they are many."""
    for group, found in groupby(sorted(names), lambda name: name.partition(".")[0]):
        members = list(found)
        if len(members) > 2 * NAMED:
            yield f"{shown(group)}.… ({len(members):,})"
        else:
            yield from map(shown, members)


def _contents(path: Path) -> Iterator[str]:
    """What can be said of something that is no checkpoint: its safetensors files, their dtypes and sizes."""
    if path.is_dir():
        files = sorted([*path.glob("*.safetensors"), *path.glob("*/*.safetensors")])
        yield f"{path}: folder with {len(list(path.iterdir()))} entries, {len(files)} safetensors files"
        for file in files:
            yield _line(str(file.relative_to(path)), _readable(file))
    elif path.is_file():
        yield f"{path}: file of {path.stat().st_size:,} bytes"
        tensors = _readable(path)
        groups = sorted({name.partition(".")[0] for name in tensors})
        if len(groups) > NAMED:
            yield _line("tensors", tensors)
        else:
            for group in groups:
                yield _line(group, {name: tensors[name] for name in tensors if name.partition(".")[0] == group})


def _readable(file: Path) -> dict[str, StoredTensor]:
    """A file's tensors; none where it is broken or no safetensors file, which the caller's sentence then says."""
    try:
        return open_tensors(file)
    except InputError:
        return {}


def _line(name: str, tensors: Mapping[str, StoredTensor], note: str = "") -> str:
    numbers = sum(tensor.numel for tensor in tensors.values())
    dtypes = " + ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}))
    return f"  {name:<13} {len(tensors):>7,} tensors  {numbers:>13,} parameters  {dtypes}  {note}".rstrip()
