"""The methods' arithmetic as their papers write it, on diffusers' UNet: attention maps are materialised and replaced.

Nothing of minibaret is used here. A hook is called in every attention layer with its name and the queries, keys and
values (rows, heads, tokens, features) of the whole batch, and returns what the layer attends to.
"""

import diffusers
import torch
from torch import Tensor

SCHEDULER = {  # Stable Diffusion 1.5's
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def build_unet(config, weights: dict[str, Tensor]) -> diffusers.UNet2DConditionModel:
    """diffusers' UNet of those sizes and weights."""
    kinds = ["CrossAttn" if attention else "" for attention in config.attention]
    unet = diffusers.UNet2DConditionModel(
        attention_head_dim=config.heads,
        block_out_channels=config.channels,
        cross_attention_dim=config.context_width,
        down_block_types=[f"{kind}DownBlock2D" for kind in kinds],
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.groups,
        up_block_types=[f"{kind}UpBlock2D" for kind in reversed(kinds)],
    )
    unet.load_state_dict(weights)
    return unet.requires_grad_(False).eval()


def maps_of(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)


class Hooked:
    """diffusers' attention processor around a hook."""

    def __init__(self, name: str, hook):
        self.name, self.hook = name, hook

    def __call__(self, attention, hidden_states, encoder_hidden_states=None, **_):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        projected = attention.to_q(hidden_states), attention.to_k(context), attention.to_v(context)
        out = self.hook(self.name, *(x.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for x in projected))
        return attention.to_out[0](out.transpose(1, 2).flatten(2))


def plain(name: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return maps_of(q, k) @ v


def attend_with(unet, hook) -> None:
    for name, module in unet.named_modules():
        if name.endswith(("attn1", "attn2")):
            module.set_processor(Hooked(name, hook))


@torch.no_grad()
def ddim_inversion(unet, latents: Tensor, context: Tensor, steps: int) -> list[Tensor]:
    """z*[0] … z*[T]."""
    scheduler = diffusers.DDIMInverseScheduler(**SCHEDULER)
    scheduler.set_timesteps(steps)
    attend_with(unet, plain)
    trajectory = [latents]
    for timestep in scheduler.timesteps:
        noise = unet(trajectory[-1], timestep, context).sample
        trajectory.append(scheduler.step(noise, timestep, trajectory[-1]).prev_sample)
    return trajectory


@torch.no_grad()
def sample_pair(unet, source, edit, contexts, steps: int, guidance: float, hook, replay=None, after=None):
    """Guided DDIM sampling of a source and an edit, all four rows: source and edit without a prompt, then with it.

    source, edit: latents to begin with. contexts(step): (4, 77, width). hook(step, name, q, k, v). replay: the source's
    latents after each step, where it is not to be sampled. after(step, source, edit) returns the edit.
    """
    scheduler = diffusers.DDIMScheduler(**SCHEDULER)
    scheduler.set_timesteps(steps)
    for step, timestep in enumerate(scheduler.timesteps):
        attend_with(unet, lambda name, q, k, v, step=step: hook(step, name, q, k, v))
        noise = unet(torch.cat([source, edit] * 2), timestep, contexts(step)).sample
        uncond, cond = noise.chunk(2)
        guided = uncond + guidance * (cond - uncond)
        moved = scheduler.step(guided, timestep, torch.cat([source, edit])).prev_sample
        source, edit = moved[:1] if replay is None else replay[step], moved[1:]
        if after is not None:
            edit = after(step, source, edit)
    return source, edit


def null_text(unet, trajectory, null, prompt, steps: int, guidance: float, inner_steps: int, first: float, rise: float):
    """Null-text inversion's loop: the embeddings of the empty prompt and the latents where they lead."""
    scheduler = diffusers.DDIMScheduler(**SCHEDULER)
    scheduler.set_timesteps(steps)
    attend_with(unet, plain)
    latents, embedding, found = trajectory[-1], null, []
    for i, timestep in enumerate(scheduler.timesteps):
        embedding = embedding.clone().detach().requires_grad_()
        adam = torch.optim.Adam([embedding], lr=1e-2 * (1 - i / 100))
        with torch.no_grad():
            cond = unet(latents, timestep, prompt).sample
        for _ in range(inner_steps):
            uncond = unet(latents, timestep, embedding).sample
            moved = scheduler.step(uncond + guidance * (cond - uncond), timestep, latents).prev_sample
            loss = torch.nn.functional.mse_loss(moved, trajectory[-2 - i])
            adam.zero_grad()
            loss.backward()
            adam.step()
            if loss.item() < first + i * rise:
                break
        with torch.no_grad():
            uncond = unet(latents, timestep, embedding).sample
            latents = scheduler.step(uncond + guidance * (cond - uncond), timestep, latents).prev_sample
        found.append((embedding.detach(), latents))
    return found
