"""CLIP's tokenizer on the `tokenizers` library: straightened, lower-cased, byte-level BPE, 77 ids, padded with the end
token.

The vocabulary follows from merges.txt alone, in CLIP's order: 256 bytes, 256 bytes that end a word, one entry per
merge, the start token, the end token.
"""

import html
import json
import textwrap
import unicodedata
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())  # a printable stand-in for each byte, in CLIP's order
LENGTH = 77
SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
# What ftfy, through which the original tokenizer (openai/CLIP, clip/simple_tokenizer.py, `basic_clean`) reads a text,
# makes of typographic quotes, ligatures, and full- and half-width letters; with the two the model was trained.
LIGATURES = "ĲĳŉǄǅǆǇǈǉǊǋǌǱǲǳﬀﬁﬂﬃﬄﬅﬆ"
STRAIGHT = {
    **{character: unicodedata.normalize("NFKC", chr(character)) for character in range(0xFF01, 0xFFF0)},
    **{ord(character): unicodedata.normalize("NFKC", character) for character in LIGATURES},
    ord("ﬅ"): "ſt",
    ord("ŉ"): "'n",
    **dict.fromkeys(map(ord, "ʼ‘’‚‛"), "'"),
    **dict.fromkeys(map(ord, "“”„‟"), '"'),
    0x3000: " ",
}


class TextTooLong(ValueError):
    """The text has more tokens than the text encoder has positions."""


class ClipTokenizer:
    def __init__(self, merges: list[tuple[str, str]]):
        words = [*BYTES, *(symbol + WORD_END for symbol in BYTES), *("".join(m) for m in merges)]
        self.vocabulary = {word: index for index, word in enumerate([*words, START, END])}
        self.start, self.end = self.vocabulary[START], self.vocabulary[END]
        self.size = len(self.vocabulary)
        self._tokenizer = Tokenizer(
            models.BPE(self.vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix=WORD_END)
        )
        split_like_clip(self._tokenizer)
        # as in CLIP, a text that spells one of the two out means the token
        self._tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in (START, END)])

    @classmethod
    def from_merges(cls, path: Path) -> "ClipTokenizer":
        """Reads merges.txt. Raises ValueError where it is none."""
        return cls(parse_merges(path.read_text(encoding="utf-8")))

    @property
    def merges(self) -> list[tuple[str, str]]:
        return [tuple(pair) for pair in json.loads(self._tokenizer.to_str())["model"]["merges"]]

    def tokens(self, text: str) -> list[str]:
        """The text's pieces, without start, end and padding; for looking at."""
        return self._tokenizer.encode(straighten(text)).tokens

    def __call__(self, text: str) -> list[int]:
        """77 ids. Raises TextTooLong, naming what does not fit, where the text has more than 75 tokens."""
        text = straighten(text)
        encoding = self._tokenizer.encode(text)
        room = LENGTH - 2
        if len(encoding.ids) > room:
            rest = text[encoding.offsets[room][0] :]
            raise TextTooLong(
                f"the text has {len(encoding.ids)} tokens and at most {room} fit; "
                f"these words do not: {textwrap.shorten(rest, 200, placeholder=' …')!r}"
            )
        ids = [self.start, *encoding.ids]
        return ids + [self.end] * (LENGTH - len(ids))


def straighten(text: str) -> str:
    """The text as the original tokenizer reads it: HTML entities as what they stand for, quotes straight, ligatures and
    full-width letters as plain ones. What else ftfy mends, such as text in a wrong encoding, stays as it is."""
    if "<" not in text:  # with a tag, ftfy leaves entities to the two calls below
        text = html.unescape(html.unescape(text))
    return html.unescape(html.unescape(text.translate(STRAIGHT)))


def is_unicode(text: str) -> bool:
    """Whether the text can be written in UTF-8: bytes that are not stand in it as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_merges(text: str, size: int | None = None) -> list[tuple[str, str]]:
    """The first `size` merges (all if None) of a merges.txt: a version line, then one pair of symbols a line.

    Only the first line is a comment; "# a" further down is a merge. Raises ValueError where a line is neither.
    """
    version, *lines = text.rstrip().split("\n")
    if "#version" not in version:
        raise ValueError(f'its first line should hold "#version", not {version[:40]!r}')
    merges = [tuple(line.rstrip("\r").split(" ")) for line in lines[:size]]
    known = {*BYTES, *(symbol + WORD_END for symbol in BYTES)}
    for number, pair in enumerate(merges, start=2):
        if len(pair) != 2 or pair[0] not in known or pair[1] not in known:
            line = lines[number - 2][:40]
            raise ValueError(f"line {number} should be two symbols that are known by then, not {line!r}")
        known.add(pair[0] + pair[1])
    return merges


def split_like_clip(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
