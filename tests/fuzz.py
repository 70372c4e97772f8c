"""Mutated files, as many as asked for, from a seed: `python fuzz.py COUNT SEED`. Prints one line of JSON: what ended in
anything but a sentence, the longest time that one file took, and how far the peak of the memory rose."""

import io
import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from checkpoints import TINY, random_weights, write_configs, write_hugging_face, write_minibaret
from PIL import Image
from safetensors.torch import save

from minibaret.errors import InputError
from minibaret.images import read_image
from minibaret.inversion import FORMAT, VERSION, load_inversion
from minibaret.origin import digest
from minibaret.weights.detect import find_checkpoint
from minibaret.weights.files import open_tensors
from minibaret.weights.vocabulary import find_tokenizer, read_tokenizer_at

ODD = [
    None,
    True,
    -1,
    0,
    1,
    1.5,
    10**30,
    2**63,
    float("nan"),
    "",
    "x",
    "\ud800",
    "a\nb",
    "x" * 5000,
    [],
    {},
    [[]],
    [1, "2"],
]
KINDS = "PNG JPEG WEBP BMP TIFF GIF PPM TGA ICO PCX SGI IM DDS JPEG2000 MSP SPIDER XBM AVIF QOI".split()  # noqa: SIM905
MODES = {"MSP": "1", "XBM": "1", "SPIDER": "F"}


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, cut, doubled or emptied; most of them near the start, where formats keep their numbers."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        near = min(len(found), rng.choice((16, 64, 512, len(data))))
        place, length = rng.randrange(max(near, 1)), rng.choice((1, 1, 2, 4, 8, 64))
        kind = rng.randrange(6)
        if kind <= 1:
            found[place : place + length] = rng.randbytes(length)
        elif kind == 2:
            found[place : place + length] = bytes([rng.choice((0, 255, 127, 128))]) * length
        elif kind == 3:
            del found[place : place + length]
        elif kind == 4:
            found[place:place] = found[place : place + length]
        else:
            del found[rng.randrange(len(found) + 1) :]
    return bytes(found)


def bent(value: object, rng: random.Random) -> object:
    """A JSON value with something odd in one place of it."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice([*value])
        if rng.random() < 0.1:
            return {(f"{key}\ud800" if other == key else other): part for other, part in value.items()}
        return {**value, key: bent(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        return [*value[:place], bent(value[place], rng), *value[place + 1 :]]
    return rng.choice(ODD)


def text(value: object, rng: random.Random) -> bytes:
    """The JSON, bent, and now and then broken or nested."""
    if rng.random() < 0.05:
        return b'{"a":' * rng.choice((500, 990, 5000)) + b"1"
    data = json.dumps(bent(value, rng)).encode()
    return mutated(data, rng) if rng.random() < 0.2 else data


def header(rng: random.Random, folder: Path) -> Callable:
    data = save({"a.weight": torch.zeros(2, 3), "model.diffusion_model.input_blocks.1.1.proj_in.bias": torch.zeros(4)})
    end = 8 + int.from_bytes(data[:8], "little")
    if rng.random() < 0.6:
        content = text(json.loads(data[8:end]), rng)
        data = len(content).to_bytes(8, "little") + content + data[end:]
    else:
        data = mutated(data, rng)
    path = folder / "model.safetensors"
    path.write_bytes(data)
    return lambda: (open_tensors(path), find_checkpoint(path))


def settings(rng: random.Random, folder: Path) -> Callable:
    """One of the JSON files of a folder, of either layout."""
    path = rng.choice([*folder.glob("*/*/*.json"), *folder.glob("*/*.json")])
    before = path.read_bytes()
    path.write_bytes(text(json.loads(before), rng))
    place = folder / path.relative_to(folder).parts[0]

    def look() -> None:
        try:
            find_checkpoint(place, config=TINY)
            read_tokenizer_at(find_tokenizer(place), TINY.text_encoder.vocabulary)
        finally:
            path.write_bytes(before)

    return look


def picture(rng: random.Random, folder: Path) -> Callable:
    kind = rng.choice(KINDS)
    if kind not in PICTURES:
        content = io.BytesIO()
        noise = Image.effect_noise((40, 30), 90).convert(MODES.get(kind, "RGB"))
        try:
            noise.save(content, kind)
        except (KeyError, OSError, ValueError):  # this Pillow writes none of the kind
            kind = "PNG"
            noise.save(content, kind)
        PICTURES[kind] = content.getvalue()
    data = mutated(PICTURES[kind], rng)
    return lambda: read_image(data)


PICTURES: dict[str, bytes] = {}


def inversion(rng: random.Random, folder: Path) -> Callable:
    """An inversion file with odd content, signed anew."""
    origin = {"picture": "0" * 64, "size": [32, 32], "fit": "crop", "weights": {"unet": "0"}, "dtype": "float32"}
    prompt = {"text": "a dog", "tokens": [1, 2, 3]}
    recipe = {"prompt": prompt, "steps": 2, "tolerance": [0.1, 0.2], "rows": "cond"}
    lists = [
        {"name": "trajectory", "recipe": {"steps": 2, "inversion prompt": prompt}},
        {"name": "x", "recipe": recipe},
    ]
    tensors = {f"trajectory.0.{i}.0": torch.zeros(1, 4, 4, 4) for i in range(3)}
    tensors |= {f"x.1.{i}.{place}": torch.zeros(1, 2) for i in range(2) for place in range(3)}
    which = rng.randrange(4)
    if which == 3:
        name = rng.choice([*tensors])
        odd = (
            torch.zeros(()),
            torch.zeros(0, 4),
            torch.zeros(3, dtype=torch.int8),
            torch.full((1, 4, 4, 4), torch.nan),
        )
        tensors[rng.choice((name, "trajectory.0.9.0", "x.1.0.-1", "y"))] = rng.choice(odd)
    parts = [json.dumps(origin), json.dumps(lists)]
    if which < 2:
        parts[which] = text([origin, lists][which], rng).decode(errors="replace")
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "origin": parts[0],
        "lists": parts[1],
        "sha256": digest("".join(parts), sorted(tensors.items())),
    }
    data = save(tensors, metadata)
    path = folder / "inversion.safetensors"
    path.write_bytes(mutated(data, rng) if which == 2 else data)

    def look() -> None:
        found = load_inversion(path)
        knobs, start = found.knobs("target embeddings"), found.start
        assert isinstance(knobs, dict) and (start is None or start.dim() > 0)
        found.origin.differences(found.origin)

    return look


def main(count: int, seed: int) -> None:
    rng = random.Random(seed)
    bad, longest, refused = [], 0.0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = random_weights(TINY)
        write_configs(write_hugging_face(folder / "hub", weights, shards=2), TINY)
        write_minibaret(folder / "own", weights, TINY)
        read_image(Image.new("RGB", (8, 8)))  # what is imported when it is first needed
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(count):
            make = (header, settings, picture, inversion)[number % 4]
            look = make(rng, folder)
            begin = time.monotonic()
            try:
                look()
            except InputError as error:
                refused += 1
                if "\n" in str(error) or len(str(error)) > 2000:
                    bad.append(f"{number} {make.__name__}: no sentence: {str(error)[:200]!r}")
            except Exception as error:
                bad.append(f"{number} {make.__name__}: {type(error).__name__}: {error}"[:300])
            longest = max(longest, time.monotonic() - begin)
        rise = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"bad": bad, "longest": longest, "megabytes": rise / 1024, "refused": refused}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
