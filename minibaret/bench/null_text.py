"""Null-text inversion as it was published (google/prompt-to-prompt, null_text_w_ptp.ipynb), for comparison: the loop
that tunes, on a UNet whose weights nobody froze, so that the backward pass computes all their gradients too."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..prediction import guide
from ..schedule import Schedule
from ..settings import Settings


def tune_null(
    unet: Callable[[Tensor, Tensor, Tensor], Tensor],
    trajectory: list[Tensor],
    text: Tensor,
    null: Tensor,
    settings: Settings,
    both_rows: bool,
) -> Iterator[float]:
    """Yields the loss of every inner iteration. Between time steps nothing is sampled: the latents are always z*.

    both_rows: predict the noise of the text's row again in every inner iteration, in a batch with the null text's,
    where the published loop predicts it once a time step.
    """
    schedule = Schedule(settings.steps)
    for index, timestep in enumerate(schedule.timesteps):
        latents, goal, time = trajectory[-1 - index], trajectory[-2 - index], torch.tensor(timestep, device=null.device)
        null = null.detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([null], lr=1e-2 * (1 - index / 100))
        if not both_rows:
            with torch.no_grad():
                noise_text = unet(latents, time, text)
        for _ in range(settings.inner_steps):
            if both_rows:
                noise = unet(torch.cat([latents] * 2), time, torch.cat([null, text]))
                moved = schedule.step(latents, guide(*noise.chunk(2), settings.guidance), timestep)
            else:
                noise = guide(unet(latents, time, null), noise_text, settings.guidance)
                moved = schedule.step(latents, noise, timestep)
            loss = F.mse_loss(moved, goal)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield loss.item()
