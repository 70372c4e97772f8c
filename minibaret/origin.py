"""What an inversion is of: picture, model, dtype; and the digests that say so."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from .pipeline import StableDiffusion


@dataclass(frozen=True)
class Origin:
    """What an inversion is of. Rounding apart: device, threads and versions of libraries are not here, so another
    machine may continue one, with other last bits."""

    picture: str  # digest of the fitted picture
    size: tuple[int, int]  # (width, height), pixels
    fit: str
    weights: dict[str, str]  # SHA-256 by network
    dtype: str  # of the UNet

    @classmethod
    def of(cls, sd: StableDiffusion, picture: Image.Image, fit: str) -> "Origin":
        """picture: RGB, fitted already."""
        return cls(picture_digest(picture), picture.size, fit, weight_digests(sd), unet_dtype(sd))

    def differences(self, wanted: "Origin") -> list[str]:
        """What differs in `wanted`, in words."""
        found = []
        if self.size != wanted.size:
            found.append(f"a picture of {_times(self.size)} pixels, not {_times(wanted.size)}")
        elif self.picture != wanted.picture:
            found.append(f"fit {self.fit}, not {wanted.fit}" if self.fit != wanted.fit else "another picture")
        parts = [part for part, digest in wanted.weights.items() if self.weights.get(part) != digest]
        if self.dtype != wanted.dtype:
            found.append(f"dtype {self.dtype}, not {wanted.dtype}")
        elif parts:
            found.append(f"other weights ({', '.join(parts)})")
        return found


def unet_dtype(sd: StableDiffusion) -> str:
    return str(sd.savings.unet_dtype or sd.model.dtype).removeprefix("torch.")


def weight_digests(sd: StableDiffusion) -> dict[str, str]:
    """SHA-256 by network; found once for a model and dtype."""
    known, dtype = sd.model.digests, unet_dtype(sd)
    if dtype not in known:
        order = ("text_encoder", "vae", "unet")  # the one needed next is read last
        known[dtype] = {part: digest_of(getattr(sd.config, part), sd.weights(part)) for part in order}
    return known[dtype]


def picture_digest(picture: Image.Image) -> str:
    """SHA-256 of a picture's pixels and size."""
    return hashlib.sha256(f"{picture.size} ".encode() + picture.tobytes()).hexdigest()


def digest_of(config: object, weights: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over a network's config and the name, dtype, shape and every byte of each of its weights, as they are in
    memory: the same weights in another dtype, or a single value that changed, give another. It does not see the code
    that runs them. Takes seconds for the gigabytes of Stable Diffusion 1.5."""
    return digest(repr(config), weights)


def tensor_digest(tensor: Tensor) -> bytes:
    """SHA-256 of a tensor's bytes, in the order of its elements, whatever its memory format and device."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()).digest()


def digest(text: str, tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over a text and the name, dtype, shape and every byte of each tensor."""
    found = hashlib.sha256(text.encode())
    for name, tensor in tensors:
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode() + tensor_digest(tensor))
    return found.hexdigest()


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"
