"""BARET as its paper has it, and null-text inversion as its, written out plainly to compare with: nothing is reused, no
row leaves the batch, and attention maps are in memory to be replaced. Of minibaret only the UNet's modules are used.

Latents and embeddings have the dtype that they come with (float64, for what is exact); the UNet computes in its own.
"""

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from minibaret.models import unet as unet_module
from minibaret.models.unet import UNet

PROMPT_TOKENS = 77
ALPHAS = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0).float().tolist()


def timesteps(steps: int) -> list[int]:
    """Leading spacing, offset 1, noisiest first."""
    return [1 + (steps - 1 - i) * (1000 // steps) for i in range(steps)]


def ddim(z: Tensor, noise: Tensor, t: int, s: int) -> Tensor:
    """From timestep t to s; below 0 stands ᾱ[0]."""
    a, b = ALPHAS[max(t, 0)], ALPHAS[max(s, 0)]
    clean = (z - (1 - a) ** 0.5 * noise) / a**0.5
    return b**0.5 * clean + (1 - b) ** 0.5 * noise


def predict(unet: UNet, z: Tensor, t: int, context: Tensor) -> Tensor:
    return unet(z.to(unet.dtype), torch.tensor(t), context.to(unet.dtype)).to(z.dtype)


@torch.no_grad()
def invert(unet: UNet, z: Tensor, context: Tensor, steps: int) -> list[Tensor]:
    """DDIM inversion at guidance 1: ε is taken at the less noisy latents, with the noisier timestep."""
    trajectory = [z]
    for t in reversed(timesteps(steps)):
        trajectory.append(ddim(trajectory[-1], predict(unet, trajectory[-1], t, context), t - 1000 // steps, t))
    return trajectory


def target_text_inversion(
    unet: UNet,
    trajectory: list[Tensor],
    target: Tensor,
    null: Tensor,
    w: float,
    inner: int,
    rate: float,
    threshold: Callable,
) -> list[tuple[Tensor, Tensor]]:
    """Algorithm 1: E[i] and Z_rec[i + 1], noisiest first."""
    steps, z, e, found = len(trajectory) - 1, trajectory[-1], target, []
    for i, t in enumerate(timesteps(steps)):
        e = e.detach().clone().requires_grad_()
        adam = torch.optim.Adam([e], lr=rate)

        def arrive(z=z, t=t) -> Tensor:
            null_noise, noise = predict(unet, torch.cat([z, z]), t, torch.cat([null, e])).chunk(2)  # noqa: B023
            return ddim(z, null_noise + w * (noise - null_noise), t, t - 1000 // steps)

        for _ in range(inner):
            square = (arrive() - trajectory[-2 - i]).square()
            if square.mean().item() < threshold(i):
                break
            square.sum().backward()  # the mean's gradient would vanish in float16; divided below
            e.grad /= square.numel()
            adam.step()
            adam.zero_grad()
        with torch.no_grad():
            z = arrive()
        found.append((e.detach(), z))
    return found


def null_text_inversion(
    unet: UNet,
    trajectory: list[Tensor],
    prompt: Tensor,
    null: Tensor,
    w: float,
    inner: int,
    rate: Callable,
    threshold: Callable,
) -> list[tuple[Tensor, Tensor, int]]:
    """The empty embedding of each step, where it leads, and how many Adam steps it took: the step whose loss, found
    before it, was low enough is taken."""
    steps, z, e, found = len(trajectory) - 1, trajectory[-1], null, []
    for i, t in enumerate(timesteps(steps)):
        e = e.detach().clone().requires_grad_()
        adam = torch.optim.Adam([e], lr=rate(i))
        taken = 0

        def arrive(z=z, t=t) -> Tensor:
            null_noise, noise = predict(unet, z, t, e), predict(unet, z, t, prompt)  # noqa: B023
            return ddim(z, null_noise + w * (noise - null_noise), t, t - 1000 // steps)

        while taken < inner:
            loss = (arrive() - trajectory[-2 - i]).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            taken += 1
            if loss.item() < threshold(i):
                break
        with torch.no_grad():
            z = arrive()
        found.append((e.detach(), z, taken))
    return found


@torch.no_grad()
def edit(
    unet: UNet, start: Tensor, embeddings: list[Tensor], target: Tensor, null: Tensor, w: float, etas: tuple,
    tau_self: float, tau_cross: float, both: bool = False,
) -> dict[str, Tensor]:  # fmt: skip
    """Eq. 3, 4, 5 with six rows at every step: reconstruction, transition, edit, each without and with its prompt."""
    steps, z = len(embeddings), start.repeat(3, 1, 1, 1)
    for i, t in enumerate(timesteps(steps)):
        eta = etas[0] + (etas[1] - etas[0]) * i / (steps - 1)
        transition = eta * embeddings[i] + (1 - eta) * target
        context = torch.cat([null, embeddings[i], null, transition, null, target])

        def replace(maps: Tensor, kind: str, i=i) -> Tensor:
            source = {"self": 1, "cross": 3}[kind]
            if i < {"self": tau_self, "cross": tau_cross}[kind] * steps:
                maps[5] = maps[source]
                if both:
                    maps[4] = maps[source - 1]
            return maps

        with maps_in_memory(replace):
            null_noise, noise = predict(unet, z.repeat_interleave(2, 0), t, context).unflatten(0, (3, 2)).unbind(1)
        z = ddim(z, null_noise + w * (noise - null_noise), t, t - 1000 // steps)
    return dict(zip(("reconstruction", "transition", "edit"), z.split(1)))


@contextlib.contextmanager
def maps_in_memory(replace: Callable[[Tensor, str], Tensor]) -> Iterator[None]:
    """Attention that makes every map, (rows, heads, queries, keys), hands it over with its layer's kind, and multiplies
    the values with what comes back."""

    def attention(q: Tensor, k: Tensor, v: Tensor, takes=None, implementation: str = "auto") -> Tensor:
        assert takes is None
        maps = (torch.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5).softmax(-1)
        maps = replace(maps, "cross" if k.shape[1] == PROMPT_TOKENS else "self")
        return torch.einsum("bhnm,bmhd->bnhd", maps, v)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unet_module, "attention", attention)
        yield
