"""A model whose networks are read when they are first used, and can be freed."""

import math
from pathlib import Path

import torch
from torch import nn

from ..models.configs import SD15, ModelConfig
from ..models.text_encoder import TextEncoder
from ..models.unet import UNet
from ..models.vae import VAE
from .detect import find_checkpoint
from .loading import prepare_networks, read_network
from .vocabulary import find_tokenizer, read_tokenizer_at


class OnDemandModel:
    """Used as a `Model`. The files are looked through at once, so that what is wrong with them is said at once."""

    def __init__(
        self,
        path: Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        variant: str | None = None,
        tokenizer: Path | None = None,
        sizes: ModelConfig = SD15,
    ):
        """See `load_model` for the arguments."""
        self._checkpoint = find_checkpoint(path, variant, sizes)
        self._networks = prepare_networks(self._checkpoint)
        self.config, self.device = self._checkpoint.config, torch.device(device)
        file = find_tokenizer(path, tokenizer)
        self.tokenizer = read_tokenizer_at(file, self.config.text_encoder.vocabulary)
        self.dtype, self._dtypes = dtype, dict.fromkeys(self._networks, dtype)
        self._here: set[str] = set()
        self.digests: dict = {}  # of the weights, where they were asked for

    @property
    def text_encoder(self) -> TextEncoder:
        return self._network("text_encoder")

    @property
    def vae(self) -> VAE:
        return self._network("vae")

    @property
    def unet(self) -> UNet:
        return self._network("unet")

    def parameter_counts(self) -> dict[str, int]:
        """How many parameters each network has."""
        parts = self._checkpoint.parts.items()
        return {part: sum(math.prod(tensor.shape) for tensor in tensors.values()) for part, tensors in parts}

    def set_dtype(self, part: str, dtype: torch.dtype) -> None:
        """From the next time it is read; a network that is there in another dtype is freed."""
        if self._dtypes[part] != dtype:
            self.free(part)
            self._dtypes[part] = dtype

    def free(self, *parts: str) -> bool:
        """Gives the networks' memory back, that of mapped files too; whether there was any. What was written to their
        weights is lost."""
        freed = self._here.intersection(parts)
        for part in freed:
            self._networks[part].to("meta")
            for tensor in self._checkpoint.parts[part].values():
                tensor.release()
            self._here.remove(part)
        return bool(freed)

    def free_all_but(self, part: str) -> bool:
        return self.free(*(self._networks.keys() - {part}))

    def _network(self, part: str) -> nn.Module:
        if part not in self._here:
            read_network(self._networks[part], self._checkpoint.parts[part], self.device, self._dtypes[part])
            self._here.add(part)
        return self._networks[part]
