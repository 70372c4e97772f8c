"""Looking at the attention of an edit: which maps to keep, and those that were kept (the paper's Figure 3)."""

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import balanced_attention as bam
from .errors import InputError
from .models.recorder import MapRecorder
from .models.tokenizer import ClipTokenizer, is_unicode


@dataclass(frozen=True)
class MapRequest:
    """Which attention maps of an edit to keep. Nothing else of the edit changes."""

    words: tuple[str, ...] = ()  # of the text: where the picture looks at them (cross-attention)
    points: tuple[tuple[int, int], ...] = ()  # (x, y), pixels of the picture: where they look (self-attention)
    steps: Collection[int] | None = None  # of the edit, from 0; all if None
    levels: Collection[int] | None = None  # of the UNet, 0 the finest; all if None


@dataclass
class AttentionMaps:
    """Mean of the heads and of the sites, on the latents' grid (h, w); by step, then by process.

    While the edit's maps are injected they are those of the process they come from.
    """

    request: MapRequest
    words: dict[int, dict[str, Tensor]] = field(default_factory=dict)  # (words, h, w)
    points: dict[int, dict[str, Tensor]] = field(default_factory=dict)  # (points, h, w)

    def of_word(self, word: str, process: str, step: int | None = None) -> Tensor:
        """(h, w): how much each pixel looks at the word; the mean of all steps that were kept if `step` is None."""
        index = self.request.words.index(word)
        return torch.stack([self.words[i][process][index] for i in self.words if step in (None, i)]).mean(0)


class MapCollector:
    """Hands a recorder to the edit's steps that are asked for, and gathers what they recorded."""

    def __init__(self, request: MapRequest, word_tokens: list[list[int]], grid: tuple[int, int], factor: int):
        """word_tokens: the positions in the text of each of the request's words; grid: (h, w) of the latents; factor:
        pixels of the picture to one of the latents, each way."""
        self.maps, self.word_tokens, self.grid, self.factor = AttentionMaps(request), word_tokens, grid, factor

    def recorder(self, step: int, rows: tuple[bam.Row, ...]) -> MapRecorder | None:
        """For the rows of one forward; None where nothing of it is asked for."""
        request = self.maps.request
        if (request.steps is not None and step not in request.steps) or not self._looked_at(rows):
            return None
        return MapRecorder(
            [rows.index(row) for row in self._looked_at(rows)],
            [token for tokens in self.word_tokens for token in tokens],
            [(y // self.factor, x // self.factor) for x, y in request.points],
            self.grid,
            request.levels,
        )

    def keep(self, step: int, rows: tuple[bam.Row, ...], recorder: MapRecorder) -> None:
        processes = [row.process for row in self._looked_at(rows)]
        if self.word_tokens:
            pieces = recorder.cross_maps.cpu().split([len(tokens) for tokens in self.word_tokens], dim=1)
            maps = torch.stack([piece.mean(1) for piece in pieces], dim=1)  # [processes, words, h, w]
            self._add(self.maps.words, step, processes, maps)
        if self.maps.request.points:
            self._add(self.maps.points, step, processes, recorder.self_maps.cpu())

    def _looked_at(self, rows: tuple[bam.Row, ...]) -> list[bam.Row]:
        return [row for row in (bam.Row(process, True) for process in bam.PROCESSES) if row in rows]

    def _add(self, found: dict[int, dict[str, Tensor]], step: int, processes: list[str], maps: Tensor) -> None:
        of_step = found.setdefault(step, {})
        of_step |= zip(processes, maps)
        if bam.RECONSTRUCTION in of_step:
            of_step.setdefault(bam.TRANSITION, of_step[bam.RECONSTRUCTION])  # in a rigid edit they are one


def find_words(words: tuple[str, ...], text: str, tokenizer: ClipTokenizer) -> list[list[int]]:
    """The token positions of each word in the text. Raises InputError for a word that is not in it."""
    pieces = tokenizer.tokens(text)
    found = []
    for word in words:
        wanted = tokenizer.tokens(word) if is_unicode(word) else []
        starts = [i for i in range(len(pieces)) if wanted and pieces[i : i + len(wanted)] == wanted]
        if not starts:
            raise InputError(f"words to look at must be in the text, but {word!r} is not in {text!r}")
        found.append([1 + start + i for start in starts for i in range(len(wanted))])  # after the start token
    return found


def check_request(request: MapRequest, size: tuple[int, int], steps: int, levels: int) -> None:
    """Raises InputError where the request does not fit a picture of this (width, height), the steps or the UNet."""
    for x, y in request.points:
        if not (0 <= x < size[0] and 0 <= y < size[1]):
            raise InputError(f"points must lie in the picture of {size[0]}×{size[1]} pixels, got {x}, {y}")
    if not request.words and not request.points:
        raise InputError("a map needs words or points to look at, got neither")
    if request.steps is not None and not (request.steps and all(0 <= step < steps for step in request.steps)):
        raise InputError(f"steps to look at must be from 0 to {steps - 1}, got {list(request.steps)}")
    if request.levels is not None and not (request.levels and all(level in range(levels) for level in request.levels)):
        raise InputError(f"levels to look at must be from 0 to {levels - 1}, got {list(request.levels)}")
