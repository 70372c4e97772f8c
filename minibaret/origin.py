"""What an inversion was made from, so that none is ever used with another picture, text, model or setting."""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from .models.tokenizer import ClipTokenizer
from .settings import Settings
from .weights.folder import tuples

READING_ORDER = ("text_encoder", "vae", "unet")  # in the order that ends with the one needed next
TRAJECTORY_SETTINGS = ("steps", "inversion_text")  # the trajectory follows from these, the picture and the model
TUNING_SETTINGS = ("guidance", "inner_steps", "learning_rate", "tolerance")  # and the tuned text from these as well
INVERSION_SETTINGS = (*TRAJECTORY_SETTINGS, *TUNING_SETTINGS)


@dataclass(frozen=True)
class Origin:
    """Everything an inversion follows from, but for rounding: device, threads and versions of libraries are not here,
    so another machine may continue an inversion, with other last bits."""

    picture: str  # SHA-256 of the fitted picture's RGB pixels
    size: tuple[int, int]  # (width, height), pixels
    fit: str
    text: str
    tokens: tuple[int, ...]  # 77 ids: all that the model sees of text and tokenizer
    weights: dict[str, str]  # SHA-256 by part
    dtype: str  # of the UNet
    settings: dict[str, object]  # those an inversion depends on; the edit's are free

    @classmethod
    def of(
        cls,
        part: Callable[[str], nn.Module],
        tokenizer: ClipTokenizer,
        picture: Image.Image,
        fit: str,
        text: str,
        settings: Settings,
    ) -> "Origin":
        """part: gives the network of a name in READING_ORDER, one after another, and every byte of its weights is read;
        picture: RGB, fitted already."""
        weights, dtypes = {}, {}
        for name in READING_ORDER:
            network = part(name)
            weights[name], dtypes[name] = network_digest(network), next(network.parameters()).dtype
        return cls(
            picture=hashlib.sha256(picture.tobytes()).hexdigest(),
            size=picture.size,
            fit=fit,
            text=text,
            tokens=tuple(tokenizer(text)),
            weights=weights,
            dtype=str(dtypes["unet"]).removeprefix("torch."),
            settings=inversion_settings(settings),
        )

    @classmethod
    def from_json(cls, text: str) -> "Origin":
        """What `to_json` wrote. Raises ValueError, TypeError or AttributeError where it is something else."""
        values = tuples(json.loads(text))
        values["settings"] = tuples(values["settings"])
        return cls(**values)

    def to_json(self) -> str:
        return json.dumps(vars(self))

    def differences(self, wanted: "Origin") -> dict[str, str]:
        """What differs in `wanted`, by name ("picture", "text", "weights", "dtype" or a setting), each in words."""
        found = {}
        if self.size != wanted.size:
            found["picture"] = f"a picture of {_times(self.size)} pixels, not {_times(wanted.size)}"
        elif self.picture != wanted.picture:
            fits = f"fit {self.fit}, not {wanted.fit}"
            found["picture"] = fits if self.fit != wanted.fit else "another picture"
        if self.tokens != wanted.tokens:
            texts = f"the text {self.text!r}, not {wanted.text!r}"
            found["text"] = texts if self.text != wanted.text else "another tokenizer"
        parts = [part for part in READING_ORDER if self.weights[part] != wanted.weights[part]]
        if self.dtype != wanted.dtype:
            found["dtype"] = f"dtype {self.dtype}, not {wanted.dtype}"
        elif parts:
            found["weights"] = f"other weights ({', '.join(parts)})"
        for name, value in self.settings.items():
            if value != wanted.settings[name]:
                found[name] = f"{name.replace('_', ' ')} {_said(value)}, not {_said(wanted.settings[name])}"
        return found


def inversion_settings(settings: Settings) -> dict[str, object]:
    """Those that an inversion depends on."""
    return tuples({name: getattr(settings, name) for name in INVERSION_SETTINGS})


def network_digest(network: nn.Module) -> str:
    """SHA-256 over the network's config and each tensor's name, dtype, shape and every byte, as they are in memory: the
    same weights in another dtype, or a single value that changed, give another. It does not see the code that runs
    them. Takes seconds for the gigabytes of Stable Diffusion 1.5; threads share the work."""
    tensors = sorted(network.state_dict().items())
    digest = hashlib.sha256(repr(network.config).encode())
    with ThreadPoolExecutor() as threads:
        for (name, tensor), content in zip(tensors, threads.map(tensor_digest, [tensor for _, tensor in tensors])):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode() + content)
    return digest.hexdigest()


def tensor_digest(tensor: Tensor) -> bytes:
    """SHA-256 of a tensor's bytes, in the order of its elements, whatever its memory format and device."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()).digest()


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"


def _said(value) -> str:
    """A setting as the command line has it."""
    return ":".join(f"{part:g}" for part in value) if isinstance(value, tuple) else str(value)
