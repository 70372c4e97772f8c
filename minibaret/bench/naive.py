"""The edit without any of the savings, to measure the shipped one against: six rows at every step, every row projects
everything. It shares the weights and the blocks without attention with the package, so that only the savings differ."""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import transition
from ..baret import Record
from ..kernels.rows import gather_rows
from ..models.unet import UNet
from ..prediction import guide
from ..schedule import Schedule
from ..settings import Settings

Attend = Callable[[Tensor, Tensor, Tensor, Sequence[int] | None], Tensor]  # [B, H, N | M, D] and the rows' sources
SELF_SOURCE, CROSS_SOURCE = (0, 1, 2, 3, 4, 3), (0, 1, 2, 3, 4, 4)  # of the rows as `edit` orders them


def gathered(q: Tensor, k: Tensor, v: Tensor, source: Sequence[int] | None) -> Tensor:
    """Plain SDPA on all rows; the edit's queries and keys are overwritten by those it takes."""
    if source is not None:
        q, k = gather_rows(q, source), gather_rows(k, source)
    return F.scaled_dot_product_attention(q, k, v)


def materialised(q: Tensor, k: Tensor, v: Tensor, source: Sequence[int] | None) -> Tensor:
    """Prompt-to-prompt's way: every row's map is written to memory, and the edit's is overwritten by the one it takes;
    the products as diffusers' unfused attention computes them."""
    queries, keys, values = (x.flatten(0, 1) for x in (q, k, v))  # [B·H, N | M, D]
    scores = torch.empty(len(queries), q.shape[2], k.shape[2], dtype=q.dtype, device=q.device)
    scores = torch.baddbmm(scores, queries, keys.mT, beta=0, alpha=q.shape[-1] ** -0.5)
    maps = scores.softmax(-1)
    del scores
    by_row = maps.view(*q.shape[:3], k.shape[2])
    for row, taken in enumerate(source or ()):
        if row != taken:
            by_row[row] = by_row[taken]
    return torch.bmm(maps, values).view(*q.shape[:3], -1)


@torch.no_grad()
def edit(
    unet: UNet, record: Record, target: Tensor, null: Tensor, settings: Settings, attend: Attend
) -> Iterator[Tensor]:
    """Yields the edit's latents after every step. All three processes are stepped to the end, with and without text;
    the edit's row with text takes its maps from those of the others (`rows="cond"`)."""
    schedule, dtype = Schedule(settings.steps), unet.conv_in.weight.dtype
    latents = record.trajectory[-1].repeat(3, 1, 1, 1)  # reconstruction, transition, edit
    for index, (timestep, eta) in enumerate(zip(schedule.timesteps, transition.etas(settings))):
        tuned = record.embeddings[index]
        context = torch.cat([null] * 3 + [tuned, transition.interpolate(tuned, target, eta), target])
        self_source = SELF_SOURCE if index < settings.self_injections else None
        cross_source = CROSS_SOURCE if index < settings.cross_injections else None
        batch = torch.cat([latents] * 2).to(dtype)
        noise = forward(unet, batch, timestep, context.to(dtype), attend, self_source, cross_source).float()
        latents = schedule.step(latents, guide(*noise.chunk(2), settings.guidance), timestep)
        yield latents[2:]


def forward(
    unet: UNet,
    latents: Tensor,
    timestep: int,
    context: Tensor,
    attend: Attend,
    self_source: Sequence[int] | None,
    cross_source: Sequence[int] | None,
) -> Tensor:
    """The UNet, written out once more, with the attention that is given."""
    time = unet.time_embedding(torch.full((len(latents),), timestep, device=latents.device))

    def layer(block: nn.Module, index: int, x: Tensor) -> Tensor:
        x = block.resnets[index](x, time)
        return transform(block.attentions[index], x) if hasattr(block, "attentions") else x

    def transform(module: nn.Module, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        inner, h = module.transformer_blocks[0], module.proj_in(module.norm(x))
        h = h.permute(0, 2, 3, 1).reshape(batch, -1, channels)  # [B, N, C]
        own = inner.norm1(h)
        h = h + attention(inner.attn1, own, own, self_source)
        h = h + attention(inner.attn2, inner.norm2(h), context, cross_source)
        h = h + inner.ff(inner.norm3(h))
        return x + module.proj_out(h.view(batch, height, width, channels).permute(0, 3, 1, 2).contiguous())

    def attention(site: nn.Module, x: Tensor, context: Tensor, source: Sequence[int] | None) -> Tensor:
        projected = site.to_q(x), site.to_k(context), site.to_v(context)
        q, k, v = (y.unflatten(-1, (site.heads, -1)).transpose(1, 2) for y in projected)
        return site.to_out[0](attend(q, k, v, source).transpose(1, 2).flatten(2))

    x = unet.conv_in(latents)
    skips = [x]
    for block in unet.down_blocks:
        for index in range(len(block.resnets)):
            x = layer(block, index, x)
            skips.append(x)
        if hasattr(block, "downsamplers"):
            x = block.downsamplers[0](x)
            skips.append(x)
    x = unet.mid_block.resnets[1](layer(unet.mid_block, 0, x), time)
    for block in unet.up_blocks:
        for index in range(len(block.resnets)):
            x = layer(block, index, torch.cat([x, skips.pop()], dim=1))
        if hasattr(block, "upsamplers"):
            x = block.upsamplers[0](x)
    return unet.conv_out(F.silu(unet.conv_norm_out(x)))
