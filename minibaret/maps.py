"""Looking at the attention of an edit: which maps to keep, and those that were kept (the paper's Figure 3)."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from .control import Layer
from .errors import InputError
from .kernels import attention_maps
from .models.tokenizer import ClipTokenizer, is_unicode

BRANCHES = ("reconstruction", "transition", "source")  # that methods name, beside the edit


@dataclass(frozen=True)
class MapRequest:
    """Which attention maps of an edit to keep. Nothing else of the edit changes."""

    words: tuple[str, ...]  # of the prompt: where the picture looks at them (cross-attention)
    steps: Collection[int] | None = None  # of the edit, from 0; all if None
    levels: Collection[int] | None = None  # of the UNet, 0 the finest; all if None


@dataclass
class AttentionMaps:
    """Mean of the heads and of the layers, on the latents' grid (h, w); by step, then by branch.

    While the edit takes another branch's maps, they are its own.
    """

    request: MapRequest
    words: dict[int, dict[str, Tensor]] = field(default_factory=dict)  # (words, h, w); NaN: not in the branch's prompt

    @property
    def branches(self) -> set[str]:
        """Whose maps were kept."""
        return {branch for of_step in self.words.values() for branch in of_step}

    def of_word(self, word: str, branch: str, step: int | None = None) -> Tensor:
        """(h, w): how much each pixel looks at the word; the mean of all steps that were kept if `step` is None. Raises
        InputError for a word, branch or step whose maps were not kept."""
        kept = [self.words[i] for i in self.words if step in (None, i)]
        if word not in self.request.words or not kept or any(branch not in of_step for of_step in kept):
            have = f"{', '.join(self.request.words)}; {', '.join(sorted(self.branches))}; steps {[*self.words]}"
            raise InputError(f"maps were kept of {have}; got {word!r}, {branch!r}, step {step}")
        index = self.request.words.index(word)
        return torch.stack([of_step[branch][index] for of_step in kept]).mean(0)


class MapCollector:
    """A recorder (control.py) of the maps that a request asks for."""

    branches = (*BRANCHES, "edit")

    def __init__(self, request: MapRequest, tokens: Mapping[str, list[list[int]]], grid: tuple[int, int]):
        """tokens: by branch, the places in its prompt of each of the request's words; grid: (h, w) of the latents."""
        self.maps, self.tokens, self.grid = AttentionMaps(request), tokens, grid
        self._layers: dict[tuple, int] = {}  # how many were added up, by step and branch

    def wants(self, step: int, layer: Layer) -> bool:
        request = self.maps.request
        return (
            layer.kind == "cross"
            and (request.steps is None or step in request.steps)
            and (request.levels is None or layer.level in request.levels)
        )

    def see(self, step: int, layer: Layer, branch: str, terms: Sequence[tuple[Tensor, Tensor, Tensor | None]]) -> None:
        maps = sum(word_maps(*term) for term in terms)[0]  # [h w, 77]
        maps = torch.stack([maps[:, tokens].mean(1) for tokens in self.tokens[branch]])  # [words, h w]
        maps = maps.unflatten(-1, [side >> layer.level for side in self.grid])[None]
        maps = F.interpolate(maps, size=self.grid, mode="bilinear", align_corners=False)[0].cpu()
        key, of_step = (step, branch), self.maps.words.setdefault(step, {})
        count = self._layers[key] = self._layers.get(key, 0) + 1
        of_step[branch] = maps if count == 1 else of_step[branch] + (maps - of_step[branch]) / count


def word_maps(q: Tensor, k: Tensor, words: Tensor | None) -> Tensor:
    """A cross-attention map, mean of the heads: (1, N, M); its columns mixed as a take's words say."""
    maps = attention_maps(q, k)
    return maps if words is None else maps @ words.to(maps)


def find_words(
    words: Sequence[str], prompt: str, tokenizer: ClipTokenizer, purpose: str = "look at"
) -> list[list[int]]:
    """The token positions of each word in the prompt. Raises InputError for a word that is not in it."""
    found = [word_tokens(word, prompt, tokenizer) for word in words]
    for word, tokens in zip(words, found):
        if not tokens:
            raise InputError(f"words to {purpose} must be in the text, but {word!r} is not in {prompt!r}")
    return found


def word_tokens(word: str, prompt: str, tokenizer: ClipTokenizer) -> list[int]:
    """The token positions of the word wherever it is in the prompt; none where it is not."""
    pieces, wanted = tokenizer.tokens(prompt), tokenizer.tokens(word) if is_unicode(word) else []
    starts = [i for i in range(len(pieces)) if wanted and pieces[i : i + len(wanted)] == wanted]
    return [1 + start + i for start in starts for i in range(len(wanted))]  # after the start token


def check_request(request: MapRequest, steps: int, levels: int) -> None:
    """Raises InputError where the request does not fit the steps or the UNet."""
    if not request.words:
        raise InputError("a map needs words to look at, got none")
    if request.steps is not None and not (request.steps and all(0 <= step < steps for step in request.steps)):
        raise InputError(f"steps to look at must be from 0 to {steps - 1}, got {list(request.steps)}")
    if request.levels is not None and not (request.levels and all(level in range(levels) for level in request.levels)):
        raise InputError(f"levels to look at must be from 0 to {levels - 1}, got {list(request.levels)}")
