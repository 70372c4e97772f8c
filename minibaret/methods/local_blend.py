"""Prompt-to-prompt's local blend: only where source or edit look at some words does the edit differ from the source."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..control import Layer
from ..errors import InputError
from ..maps import word_maps, word_tokens
from ..models.tokenizer import LENGTH
from ..pipeline import StableDiffusion
from .common import Job

ENOUGH = 256  # tokens of the maps' level: 16² in Stable Diffusion 1.5 at 512×512 pixels
THRESHOLD = 0.3  # of the largest value


class LocalBlend:
    """A recorder (control.py) of the branches' maps, summed over layers and steps so far, and what `sample` does with
    the latents after each step. The level is the coarsest of at least 256 tokens, else the finest."""

    branches = ("source", "edit")

    def __init__(self, sd: StableDiffusion, job: Job, words: str):
        """words: one or more, with spaces between. Raises InputError for one that is in neither prompt."""
        self.tokens = {name: torch.zeros(LENGTH, device=sd.device) for name in self.branches}  # 1 at the words' tokens
        for word in words.split():
            found = [word_tokens(word, prompt, sd.tokenizer) for prompt in (job.source, job.prompt)]
            if not any(found):
                raise InputError(
                    f"a word to blend by must be in the prompt or the source prompt, "
                    f"but {word!r} is neither in {job.prompt!r} nor in {job.source!r}"
                )
            for tokens, places in zip(self.tokens.values(), found):
                tokens[places] = 1
        height, width = job.latents.shape[-2:]
        cross = [layer for layer in sd.unet.layers(height, width) if layer.kind == "cross"]
        enough = [layer.level for layer in cross if layer.tokens >= ENOUGH]
        self.level = max(enough) if enough else min(layer.level for layer in cross)
        grid = height >> self.level, width >> self.level
        self.sums = {name: torch.zeros(grid, device=sd.device) for name in self.branches}

    def wants(self, step: int, layer: Layer) -> bool:
        return layer.kind == "cross" and layer.level == self.level

    def see(self, step: int, layer: Layer, branch: str, terms: Sequence[tuple[Tensor, Tensor, Tensor | None]]) -> None:
        maps = sum(word_maps(*term) for term in terms)[0]  # [h w, 77]
        self.sums[branch] = self.sums[branch] + (maps @ self.tokens[branch]).view_as(self.sums[branch])

    def after(self, step: int, latents: dict[str, Tensor]) -> dict[str, Tensor]:
        """The latents with the source's in place of the edit's outside both branches' regions."""
        source, edit = latents["source"], latents["edit"]
        inside = self.region("source", edit.shape[-2:]) | self.region("edit", edit.shape[-2:])
        return {**latents, "edit": torch.where(inside, edit, source)}

    def region(self, branch: str, size: Sequence[int]) -> Tensor:
        """Where the branch looks at the words: bool (1, 1, h, w)."""
        pooled = F.max_pool2d(self.sums[branch][None, None], kernel_size=3, stride=1, padding=1)
        return F.interpolate(pooled, size=tuple(size)) > THRESHOLD * pooled.max()
