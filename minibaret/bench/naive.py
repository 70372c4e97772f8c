"""The edit without any of the savings, to measure the shipped one against: six rows at every step, every row projects
everything. The UNet is the package's; only its attention is another."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..methods.baret import BaretKnobs
from ..models import unet as unet_module
from ..models.unet import UNet
from ..sampler import Schedule

Sources = Sequence[int] | None  # for each row of the batch, the row whose attention map it takes
Attend = Callable[[Tensor, Tensor, Tensor, Sources], Tensor]  # q, k, v: [B, N | M, H, D]
SELF, CROSS = (0, 1, 2, 3, 4, 3), (0, 1, 2, 3, 4, 4)  # the rows as `edit` orders them; Eq. 4, Eq. 5


def gathered(q: Tensor, k: Tensor, v: Tensor, sources: Sources = None) -> Tensor:
    """Plain SDPA on all rows; the edit's queries and keys are overwritten by those it takes."""
    if sources is not None:
        q, k = (torch.cat([x[row : row + 1] for row in sources]) for x in (q, k))
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def materialised(q: Tensor, k: Tensor, v: Tensor, sources: Sources) -> Tensor:
    """Prompt-to-prompt's way: every row's map is written to memory, and the edit's is overwritten by the one it
    takes."""
    maps = attention_maps(q, k)
    for row, taken in enumerate(sources or ()):
        if row != taken:
            maps[row] = maps[taken]
    return apply(maps, v)


def attention_maps(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q kᵀ / √D), [B, H, N, M], by the products of diffusers' unfused attention."""
    queries, keys = (x.transpose(1, 2).flatten(0, 1) for x in (q, k))  # [B·H, N | M, D]
    scores = torch.empty(len(queries), q.shape[1], k.shape[1], dtype=q.dtype, device=q.device)
    scores = torch.baddbmm(scores, queries, keys.mT, beta=0, alpha=q.shape[-1] ** -0.5)
    return scores.softmax(-1).unflatten(0, (len(q), -1))


def apply(maps: Tensor, v: Tensor) -> Tensor:
    """maps [B, H, N, M], v [B, M, H, D] → [B, N, H, D]."""
    out = torch.bmm(maps.flatten(0, 1), v.transpose(1, 2).flatten(0, 1))
    return out.unflatten(0, maps.shape[:2]).transpose(1, 2)


@torch.no_grad()
def edit(
    unet: UNet, noise: Tensor, tuned: Sequence[Tensor], target: Tensor, null: Tensor, knobs: BaretKnobs, attend: Attend
) -> Iterator[Tensor]:
    """Yields the edit's latents after every step. All three branches are stepped to the end, with and without prompt;
    the edit's row with its prompt takes its maps from those of the others. noise: z*[T]; tuned: E[i], noisiest
    first."""
    schedule = Schedule(knobs.steps)
    latents = noise.repeat(3, 1, 1, 1)  # reconstruction, transition, edit
    first, last = knobs.transition
    for index, timestep in enumerate(schedule.timesteps):
        eta = first + (last - first) * index / (knobs.steps - 1)
        context = torch.cat([null] * 3 + [tuned[index], eta * tuned[index] + (1 - eta) * target, target])
        self_sources = SELF if index < math.ceil(knobs.self_steps * knobs.steps) else None
        cross_sources = CROSS if index < math.ceil(knobs.cross_steps * knobs.steps) else None
        with attending(attend, self_sources, cross_sources, context.shape[1]):
            batch, time = torch.cat([latents] * 2).to(unet.dtype), torch.tensor(timestep, device=latents.device)
            uncond, cond = unet(batch, time, context.to(unet.dtype)).float().chunk(2)
        latents = schedule.step(latents, uncond + knobs.guidance * (cond - uncond), timestep)
        yield latents[2:]


@contextlib.contextmanager
def attending(attend: Attend, self_sources: Sources, cross_sources: Sources, words: int) -> Iterator[None]:
    """The UNet's attention is `attend`; words: how many keys cross-attention has."""

    def attention(q: Tensor, k: Tensor, v: Tensor, *_) -> Tensor:
        return attend(q, k, v, cross_sources if k.shape[1] == words else self_sources)

    shipped = unet_module.attention
    unet_module.attention = attention
    try:
        yield
    finally:
        unet_module.attention = shipped
