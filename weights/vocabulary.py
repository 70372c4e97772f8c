"""CLIP's vocabulary in its three spellings: merges.txt, tokenizer.json and OpenAI's bpe_simple_vocab_16e6.txt.gz.

The merges are enough to build the tokenizer; a vocabulary that comes with them is compared with the one they give.
"""

import gzip
import zlib
from pathlib import Path

from ..errors import InputError
from ..files import LONGEST_JSON, absent, brief, read_json
from ..models.tokenizer import ClipTokenizer, parse_merges
from .files import shown

NAMES = ("merges.txt", "tokenizer.json", "bpe_simple_vocab_16e6.txt.gz")
NO_MERGES = 2 * 256 + 2  # entries that are no merges: bytes, bytes that end a word, start, end


def find_tokenizer(weights: Path, named: Path | None = None) -> Path:
    """The tokenizer's file: at `named`, in the weights' folder or its tokenizer/, or beside the single file.

    Raises InputError, saying which file to put where, if there is none.
    """
    if named is not None and named.is_file():
        return named
    folder = named or (weights if weights.is_dir() else weights.parent)
    for path in (place / name for place in (folder / "tokenizer", folder) for name in NAMES):
        if path.is_file():
            return path
        if path.is_symlink():
            raise InputError(absent(path))
    if named is not None:
        raise InputError(f"{named} is neither a tokenizer's file nor a folder that holds {' or '.join(NAMES)}")
    where = f"into {folder / 'tokenizer'}" if weights.is_dir() else f"beside it, into {folder}"
    raise InputError(
        f"{weights} has no tokenizer: put merges.txt, from the tokenizer folder of any Stable Diffusion 1.5 download, "
        f"{where}, or name one with --tokenizer PATH"
    )


def read_tokenizer_at(path: Path, entries: int) -> ClipTokenizer:
    """The tokenizer of a file. Raises InputError where it is broken or has not as many entries as the text encoder."""
    if not path.is_file():
        raise InputError(f"there is no tokenizer: {path} is missing")
    if path.stat().st_size > LONGEST_JSON:
        raise InputError(f"{path} must have at most {LONGEST_JSON:,} bytes, it has {path.stat().st_size:,}")
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rt", encoding="utf-8") as file:
                tokenizer = ClipTokenizer(
                    parse_merges(file.read(LONGEST_JSON), entries - NO_MERGES)
                )  # more merges than CLIP uses
        elif path.suffix == ".json":
            tokenizer = _from_json(path)
        else:
            tokenizer = ClipTokenizer.from_merges(path)
            beside = path.with_name("vocab.json")
            if beside.is_file():
                _compare(tokenizer, read_json(beside), beside.name)
    except (ValueError, EOFError, OSError, zlib.error) as error:
        raise InputError(f"{path} is not CLIP's tokenizer: {error}") from None
    if tokenizer.size != entries:
        raise InputError(f"{path} is another model's: it has {tokenizer.size:,} entries, the text encoder {entries:,}")
    return tokenizer


def _from_json(path: Path) -> ClipTokenizer:
    try:
        model = read_json(path)["model"]
        lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        vocabulary = dict(model["vocab"])
    except (KeyError, TypeError):
        raise ValueError('a tokenizer.json with "model", "merges" and "vocab" in it was wanted') from None
    tokenizer = ClipTokenizer(parse_merges("\n".join(["#version", *lines])))
    _compare(tokenizer, vocabulary, "its vocabulary")
    return tokenizer


def _compare(tokenizer: ClipTokenizer, vocabulary: object, source: str) -> None:
    """Raises ValueError unless the vocabulary is the one that follows from the merges: a dict of numbers by entry."""
    if not isinstance(vocabulary, dict):
        raise ValueError(f"{source} should hold an object, {{…}}, not {brief(vocabulary)}")
    if tokenizer.vocabulary == vocabulary:
        return
    for entry in [*tokenizer.vocabulary, *vocabulary]:
        ours, theirs = tokenizer.vocabulary.get(entry), vocabulary.get(entry)
        if ours != theirs:
            said = f"entry {shown(entry)!r} is number {brief(ours)} by the merges and {brief(theirs)} by {source}"
            raise ValueError(said)
