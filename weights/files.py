"""Safetensors files: their headers, and tensors that stay in the file until they are used.

The format (huggingface/safetensors, README "Format"): 8 bytes with the length of the header, little-endian; the
header, JSON with each tensor's dtype, shape and place; the tensors. Files are mapped into memory: a tensor that is used
as it stands is a view of the file's pages, and writing to it changes the process's copy, never the file.
"""

import contextlib
import json
import math
import mmap
import os
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from ..errors import InputError
from ..files import absent, read_json

PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl")  # could run code when opened, so they never are
LONGEST_HEADER = 100_000_000  # bytes, as in the safetensors library
MOST_VALUES = 1_000_000  # in a header; Stable Diffusion 1.5's has six thousand
NAME_SHOWN = 300  # letters of a name out of a file
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Pages:
    """A file in memory: to be read, and as a copy of the process's own, of which what is written to differs."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self.shared = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)

    @cached_property
    def own(self) -> mmap.mmap:  # made when it is needed: limits on a process's data (ulimit -d) count all of it
        return mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_COPY)

    def release(self, begin: int, size: int, own: bool) -> None:
        """Hands bytes back to the system, where it can be told so; own: of the process's copy too, which then is the
        file's again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            first = begin - begin % mmap.PAGESIZE
            for pages in (self.shared, vars(self).get("own") if own else None):
                if pages is not None:
                    pages.madvise(mmap.MADV_DONTNEED, first, begin + size - first)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file."""

    path: Path
    key: str  # its name in the file
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int  # byte of the file
    pages: Pages
    channels_last: bool = False  # a convolution's weight, in the file as (out, height, width, in)

    @property
    def mapped(self) -> torch.Tensor:
        """The file's pages themselves, which nobody may write to. No operation but `clone` may use what is not aligned,
        in a file whose header has an odd length."""
        return self._view(self.pages.shared)

    def _view(self, pages: mmap.mmap) -> torch.Tensor:
        with _quiet():
            flat = torch.frombuffer(pages, dtype=self.dtype, count=self.numel, offset=self.begin)
        if self.channels_last:
            channels_out, channels_in, height, width = self.shape
            return flat.view(channels_out, height, width, channels_in).permute(0, 3, 1, 2)
        return flat.view(self.shape)

    @property
    def is_weight(self) -> bool:
        """Whether it could be a network's: what PyTorch computes in, or what stands for it."""
        return self.dtype.is_floating_point

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.numel * self.dtype.itemsize

    @property
    def aligned(self) -> bool:
        return self.begin % self.dtype.itemsize == 0

    def read(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> torch.Tensor:
        """The tensor on a device, in `dtype` (its own if None): where nothing changes the mapped pages, which may be
        written to.

        After a conversion or a copy the pages are handed back, so that a file is never in memory beside its tensors.
        """
        if self.aligned and torch.device(device).type == "cpu" and dtype in (None, self.dtype):
            return self._view(self.pages.own)
        tensor = (self.mapped if self.aligned else self.mapped.clone()).to(device).to(dtype or self.dtype)
        self.release(own=False)
        return tensor

    def read_into(self, place: torch.Tensor) -> None:
        """Copies the tensor to one of its shape, in that one's dtype, and hands the pages back."""
        place.copy_(self.mapped if self.aligned else self.mapped.clone())
        self.release(own=False)

    def release(self, own: bool = True) -> None:
        """Hands the mapped pages back: they are fetched from the file again when they are used again. own: also those
        that may have been written to."""
        self.pages.release(self.begin, self.size, own)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """PyTorch warns, once, of memory that cannot be written to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def open_tensors(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a safetensors file, or of the files that a `.safetensors.index.json` lists, by name.

    Raises InputError where a file is missing, a pickle, not safetensors or cut short.
    """
    if not path.is_file():
        raise InputError(absent(path))
    return _open_shards(path) if path.name.endswith(".json") else open_file(path)


def refuse_pickle(path: Path) -> None:
    """Raises InputError where the name is a pickle's."""
    if path.suffix.lower() in PICKLES:
        raise InputError(
            f"{path} is a pickle ({path.suffix}), which can run code when it is opened, so minibaret opens none: "
            "download the .safetensors file of the same model"
        )


def open_file(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of one safetensors file, by name. Raises InputError for a pickle, a damaged or another file."""
    refuse_pickle(path)
    size = path.stat().st_size
    if size < 10:
        raise InputError(f"{path} is not a safetensors file: it has {size} bytes")
    try:
        mapped = Pages(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    pages = mapped.shared
    header_end = 8 + int.from_bytes(pages[:8], "little")
    if pages[8:9] != b"{":
        raise InputError(f"{path} is not a safetensors file: {_looks_like(pages[:64])}")
    if header_end > LONGEST_HEADER + 8:
        said = f"its header would have {header_end - 8:,} bytes, and at most {LONGEST_HEADER:,} are allowed"
        raise InputError(f"{path} is not a safetensors file: {said}")
    if header_end > size:
        raise InputError(f"{path} is cut short: its header alone wants {header_end:,} bytes, the file has {size:,}")
    try:
        header = pages[8:header_end]
        if header.count(b",") > MOST_VALUES:  # reading so much JSON takes gigabytes
            raise ValueError(f"it lists more than {MOST_VALUES:,} values")
        entries = json.loads(header).items()
        tensors = {n: _stored(path, n, entry, header_end, mapped) for n, entry in entries if n != "__metadata__"}
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        said = shown(f"{type(error).__name__}: {error}")
        raise InputError(f"{path} is not a safetensors file: its header does not parse ({said})") from None
    _check_places(path, tensors, header_end, size)
    return tensors


def _stored(path: Path, name: str, entry: dict, header_end: int, pages: Pages) -> StoredTensor:
    name.encode()  # a lone surrogate, which JSON can spell and no file can hold, raises a ValueError
    if entry["dtype"] not in DTYPES:
        raise InputError(
            f"{path}: tensor {shown(name)} has dtype {shown(str(entry['dtype']))!r}, which minibaret cannot read"
        )
    shape, (begin, end) = entry["shape"], entry["data_offsets"]
    if len(shape) > 64 or not all(type(number) is int and 0 <= number < 2**63 for number in (*shape, begin, end)):
        raise ValueError(f"{shown(name)} has a shape or data_offsets that no tensor has")
    tensor = StoredTensor(path, name, DTYPES[entry["dtype"]], tuple(shape), header_end + begin, pages)
    if end - begin != math.prod(tensor.shape) * tensor.dtype.itemsize:
        raise ValueError(f"{shown(name)} of shape {shown(str(shape))} cannot lie in bytes {begin} to {end}")
    return tensor


def _check_places(path: Path, tensors: dict[str, StoredTensor], header_end: int, size: int) -> None:
    """The tensors follow one another without a gap and end where the file ends."""
    place = header_end
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.begin, math.prod(tensor.shape))):
        if tensor.begin != place:
            said = f"tensor {shown(tensor.key)} begins at byte {tensor.begin:,}, not {place:,}"
            raise InputError(f"{path} is damaged: {said}")
        place += math.prod(tensor.shape) * tensor.dtype.itemsize
    if place > size:
        raise InputError(f"{path} is cut short: its header wants {place:,} bytes, the file has {size:,}")
    if place < size:
        raise InputError(f"{path} is damaged: its header wants {place:,} bytes, the file has {size:,}")


def _open_shards(index: Path) -> dict[str, StoredTensor]:
    """Of each shard, the tensors that the index says are in it."""
    content = read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise InputError(f'{index} is not an index of shards: JSON with a "weight_map" of file names was wanted')
    tensors: dict[str, StoredTensor] = {}
    beside = {path.name: path for path in index.parent.iterdir()}
    for name in sorted(set(places.values())):
        if name not in beside:
            raise InputError(f"{index} lists the shard {shown(name)}, which is not beside it")
        found = open_tensors(beside[name])
        tensors |= {key: tensor for key, tensor in found.items() if places.get(key, name) == name}
    for key in sorted(places.keys() ^ tensors.keys()):
        raise InputError(f"{index} and its shards disagree about tensor {shown(key)}")
    return tensors


def shown(name: str) -> str:
    """A name out of a file as it may stand in a sentence: on one line, printable, not endless."""
    name = name if name.isprintable() else ascii(name)[1:-1]
    return name if len(name) <= NAME_SHOWN else f"{name[:NAME_SHOWN]}…"


def _looks_like(start: bytes) -> str:
    if start.startswith((b"PK\x03\x04", b"\x80\x02")):
        return "it is a PyTorch pickle under another name, which minibaret never opens"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "it is a web page, as a download that went wrong leaves"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; `git lfs pull` fetches the file itself"
    return f"it begins with {start[:8]!r}"
