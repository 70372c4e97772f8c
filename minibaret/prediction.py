"""The UNet's noise, and classifier-free guidance: what inversion, tuning and sampling share."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from .models.injection import NO_INJECTION, Injection
from .models.recorder import MapRecorder
from .models.unet import ProjectedText, UNet


def predict(
    unet: UNet,
    latents: Tensor,
    timestep: int,
    text: Tensor | ProjectedText,
    injection: Injection = NO_INJECTION,
    recorder: MapRecorder | None = None,
) -> Tensor:
    """The noise that the UNet predicts in latents (B, 4, h, w), float32: latents stay float32 between steps, whatever
    the networks' dtype. text: embeddings (B, 77, width), or what `UNet.project_text` made of them."""
    timesteps = torch.full((), timestep, device=latents.device)  # made there: a copy to a GPU would make the CPU wait
    return unet(latents.to(unet.dtype), timesteps, text, injection, recorder).float()


def guide(noise_null: Tensor, noise_text: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022); at guidance 1 it is the text's own noise."""
    return noise_null + guidance * (noise_text - noise_null)


@contextlib.contextmanager
def no_tf32() -> Iterator[None]:
    """Float32 products on a GPU keep all their bits; what was chosen before is chosen again afterwards."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(matmul, "fp32_precision"):  # PyTorch 2.9 and newer: the older switches do less, and may not be mixed
        switches, name, off = (matmul, cudnn.conv), "fp32_precision", "ieee"
    else:
        switches, name, off = (matmul, cudnn), "allow_tf32", False
    before = [getattr(switch, name) for switch in switches]
    try:
        for switch in switches:
            setattr(switch, name, off)
        yield
    finally:
        for switch, chosen in zip(switches, before):
            setattr(switch, name, chosen)
