"""Any checkpoint that loads → a minibaret folder in one dtype, a tensor at a time: `minibaret convert`."""

import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError
from ..files import write_whole
from .detect import find_checkpoint
from .files import DTYPES, StoredTensor
from .folder import CHANNELS_LAST, IMAGE_ENCODER, MERGES, save_config, save_merges
from .int8 import SCALE, best_scale, to_int8
from .loading import prepare_network
from .vocabulary import find_tokenizer, read_tokenizer_at

Count = Callable[[str, int, int], object]
NAMES = {dtype: name for name, dtype in DTYPES.items()}
BLOCK = re.compile(r"(?:down|up)_blocks\.(\d+)\.")  # of the UNet and the VAE; on the way up the coarsest is the first
FORMATS = ("bfloat16", "float16", "float32", "int8")
KEPT = 0.028  # of a network's weights, at most, are kept in 16 bits where others are int8: those that hurt most


def convert(
    path: Path,
    folder: Path,
    dtype: str,
    variant: str | None = None,
    tokenizer: Path | None = None,
    watch: Count = lambda *_: None,
) -> None:
    """Writes the folder; what it was made of is in its config.json, with the SHA-256 of each file. See `load_model` for
    path, variant and tokenizer.

    watch: called with a network's name, how many of its tensors are written, and of how many. dtype: one of FORMATS;
    "int8" keeps in 16 bits what has a single dimension, and the weights whose error is largest. Until it is finished
    the folder has .part after its name, and the same call begins it anew. Raises InputError where `load_model` would,
    where the folder is there already, and for a number too large for the dtype.
    """
    if dtype not in FORMATS:
        raise InputError(f"dtype must be one of {', '.join(FORMATS)}, got {dtype!r}")
    checkpoint = find_checkpoint(path, variant)
    for part in checkpoint.parts:
        prepare_network(checkpoint, part)
    clip = read_tokenizer_at(find_tokenizer(path, tokenizer), checkpoint.config.text_encoder.vocabulary)
    if os.path.lexists(folder):
        raise InputError(f"{folder} exists already: name a folder that is yet to be made")
    folder = folder.absolute()
    unfinished = folder.with_name(folder.name + ".part")
    unfinished.mkdir(parents=True, exist_ok=True)
    for part, tensors in checkpoint.parts.items():
        _write(unfinished / f"{part}.safetensors", part, tensors, dtype, watch)
    if checkpoint.config.image_encoder and (path / IMAGE_ENCODER).is_file():
        write_whole(unfinished / IMAGE_ENCODER, (path / IMAGE_ENCODER).read_bytes())
    save_merges(clip.merges, unfinished / MERGES)
    files = sorted({tensor.path for tensors in checkpoint.parts.values() for tensor in tensors.values()})
    origin = {str(file.relative_to(path) if path.is_dir() else file.name): _sha256(file) for file in files}
    save_config(dataclasses.replace(checkpoint.config, origin=origin), unfinished)
    unfinished.rename(folder)


def _write(path: Path, part: str, tensors: Mapping[str, StoredTensor], dtype: str, watch: Count) -> None:
    """One network's file. The safetensors format: weights/files.py."""
    scales = _scales(tensors) if dtype == "int8" else {}
    whole = torch.float16 if dtype == "int8" else getattr(torch, dtype)
    entries = {name + SCALE: (torch.float32, scale.shape, lambda scale=scale: scale) for name, scale in scales.items()}
    for name, tensor in tensors.items():
        last = part == "unet" and dtype in ("float16", "bfloat16") and len(tensor.shape) == 4
        kind, key = torch.int8 if name in scales else whole, name + CHANNELS_LAST * last
        shape = tuple(tensor.shape[place] for place in (0, 2, 3, 1)) if last else tensor.shape
        read = partial(_converted, tensor, kind, scales.get(name), last, f"{part}: {name}")
        entries[key] = kind, shape, read
    header, place = {}, 0
    for key in sorted(entries, key=lambda key: (-entries[key][0].itemsize, key)):  # so that each begins where it may
        kind, shape, _ = entries[key]
        end = place + math.prod(shape) * kind.itemsize
        header[key], place = {"dtype": NAMES[kind], "shape": list(shape), "data_offsets": [place, end]}, end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)

    def fill(file_name: str) -> None:
        with open(file_name, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for done, key in enumerate(header, start=1):
                file.write(entries[key][-1]().contiguous().flatten().view(torch.uint8).numpy())
                watch(part, done, len(header))

    write_whole(path, fill)


def _converted(stored: StoredTensor, kind: torch.dtype, scale: Tensor | None, last: bool, name: str) -> Tensor:
    value = stored.read(dtype=torch.float32 if scale is not None else None)
    if scale is not None:
        found = to_int8(value, scale)
    else:
        found = value.to(kind)
        if not found.isfinite().all() and value.isfinite().all():
            raise InputError(f"{name} has numbers that are too large for {str(kind).removeprefix('torch.')}")
    found = found.permute(0, 2, 3, 1) if last else found
    found = found.clone(memory_format=torch.contiguous_format)  # the file's pages are handed back
    stored.release()
    return found


def _scales(tensors: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
    """The scale of each weight that is to be int8. Left out are those that hurt most, as many as are allowed, and what
    has a single dimension, which is little.

    What hurts: the error, a quarter of it for each level down. Of a UNet of random weights at Stable Diffusion 1.5's
    size in int8 the finest level's blocks, 3 % of it, make half of the error of the noise; those of the two coarsest
    levels, five sixths of it, a seventh.
    """
    scales, harm = {}, {}
    levels = 1 + max((int(found[1]) for found in map(BLOCK.search, tensors) if found), default=0)
    for name, tensor in tensors.items():
        if len(tensor.shape) > 1:
            scales[name], error = best_scale(tensor.read(dtype=torch.float32))
            tensor.release()
            harm[name] = error / 4 ** _level(name, levels)
    room = KEPT * sum(tensor.numel for tensor in tensors.values())
    for name in sorted(harm, key=harm.get, reverse=True):
        if tensors[name].numel <= room:
            room -= tensors[name].numel
            del scales[name]
    return scales


def _level(name: str, levels: int) -> int:
    """Where a weight stands in the UNet or the VAE: 0 is the finest, and outside of all levels."""
    if "mid_block" in name:
        return levels - 1
    found = BLOCK.search(name)
    if not found:
        return 0
    return levels - 1 - int(found[1]) if "up_blocks" in name else int(found[1])


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**24):
            digest.update(piece)
    return digest.hexdigest()
