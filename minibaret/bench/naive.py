"""The edit without any of the savings, to measure the shipped one against: six rows at every step, every row projects
everything. It shares the weights and the blocks without attention with the package, so that only the savings differ."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..methods.baret import BaretKnobs
from ..models.unet import UNet
from ..sampler import Schedule

Sources = Sequence[int] | None  # for each row of the batch, the row whose attention map it takes
Attend = Callable[[Tensor, Tensor, Tensor, Sources], Tensor]  # q, k, v: [B, H, N | M, D]
SELF, CROSS = (0, 1, 2, 3, 4, 3), (0, 1, 2, 3, 4, 4)  # the rows as `edit` orders them; Eq. 4, Eq. 5


def gathered(q: Tensor, k: Tensor, v: Tensor, sources: Sources) -> Tensor:
    """Plain SDPA on all rows; the edit's queries and keys are overwritten by those it takes."""
    if sources is not None:
        q, k = (torch.cat([x[row : row + 1] for row in sources]) for x in (q, k))
    return F.scaled_dot_product_attention(q, k, v)


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
    queries, keys = q.flatten(0, 1), k.flatten(0, 1)  # [B·H, N | M, D]
    scores = torch.empty(len(queries), q.shape[2], k.shape[2], dtype=q.dtype, device=q.device)
    scores = torch.baddbmm(scores, queries, keys.mT, beta=0, alpha=q.shape[-1] ** -0.5)
    return scores.softmax(-1).view(*q.shape[:3], k.shape[2])


def apply(maps: Tensor, v: Tensor) -> Tensor:
    return torch.bmm(maps.flatten(0, 1), v.flatten(0, 1)).view(*maps.shape[:3], -1)


@torch.no_grad()
def edit(
    unet: UNet, noise: Tensor, tuned: Sequence[Tensor], target: Tensor, null: Tensor, knobs: BaretKnobs, attend: Attend
) -> Iterator[Tensor]:
    """Yields the edit's latents after every step. All three processes are stepped to the end, with and without text;
    the edit's row with text takes its maps from those of the others. noise: z*[T]; tuned: E[i], noisiest first."""
    schedule = Schedule(knobs.steps)
    latents = noise.repeat(3, 1, 1, 1)  # reconstruction, transition, edit
    first, last = knobs.transition
    for index, timestep in enumerate(schedule.timesteps):
        eta = first + (last - first) * index / (knobs.steps - 1)
        context = torch.cat([null] * 3 + [tuned[index], eta * tuned[index] + (1 - eta) * target, target])
        self_sources = SELF if index < math.ceil(knobs.self_steps * knobs.steps) else None
        cross_sources = CROSS if index < math.ceil(knobs.cross_steps * knobs.steps) else None
        batch, context = torch.cat([latents] * 2).to(unet.dtype), context.to(unet.dtype)
        without, with_text = (
            forward(unet, batch, timestep, context, attend, self_sources, cross_sources).float().chunk(2)
        )
        latents = schedule.step(latents, without + knobs.guidance * (with_text - without), timestep)
        yield latents[2:]


def forward(
    unet: UNet, latents: Tensor, timestep: int, context: Tensor, attend: Attend, self_sources: Sources,
    cross_sources: Sources,
) -> Tensor:  # fmt: skip
    """The UNet, written out once more, with the attention that is given."""
    time = unet.time_embedding(torch.full((len(latents),), timestep, device=latents.device))

    def layer(block: nn.Module, index: int, x: Tensor) -> Tensor:
        x = block.resnets[index](x, time)
        return transform(block.attentions[index], x) if index < len(block.attentions) else x

    def transform(module: nn.Module, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        inner, h = module.transformer_blocks[0], module.proj_in(module.norm(x))
        h = h.permute(0, 2, 3, 1).reshape(batch, -1, channels)  # [B, N, C]
        own = inner.norm1(h)
        h = h + attention(inner.attn1, own, own, self_sources)
        h = h + attention(inner.attn2, inner.norm2(h), context, cross_sources)
        h = h + inner.ff(inner.norm3(h))
        return x + module.proj_out(h.view(batch, height, width, channels).permute(0, 3, 1, 2).contiguous())

    def attention(site: nn.Module, x: Tensor, context: Tensor, sources: Sources) -> Tensor:
        projected = site.to_q(x), site.to_k(context), site.to_v(context)
        q, k, v = (y.unflatten(-1, (site.heads, -1)).transpose(1, 2) for y in projected)
        return site.to_out[0](attend(q, k, v, sources).transpose(1, 2).flatten(2))

    x = unet.conv_in(latents)
    skips = [x]
    for block in unet.blocks:
        for index in range(len(block.resnets)):
            if block.part == "up":
                x = torch.cat([x, skips.pop()], dim=1)
            x = layer(block, index, x)
            if block.part == "down":
                skips.append(x)
        if hasattr(block, "downsamplers"):
            x = block.downsamplers[0](x)
            skips.append(x)
        if hasattr(block, "upsamplers"):
            x = block.upsamplers[0](x)
    return unet.conv_out(F.silu(unet.conv_norm_out(x)))
