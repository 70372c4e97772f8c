"""A model whose networks are read when they are first used, each dtype for itself, and can be freed."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from .detect import find_checkpoint
from .loading import prepare_network, read_network
from .streamed import stream
from .vocabulary import find_tokenizer, read_tokenizer_at


class OnDemandModel:
    """Used as a `Model`, its networks by `network`. The files are looked through at once, so that what is wrong with
    them is said at once."""

    def __init__(
        self,
        path: Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        variant: str | None = None,
        tokenizer: Path | None = None,
    ):
        """See `load_model` for the arguments."""
        self._checkpoint = find_checkpoint(path, variant)
        for part in self._checkpoint.parts:
            prepare_network(self._checkpoint, part)
        self.config, self.device, self.dtype = self._checkpoint.config, torch.device(device), dtype
        file = find_tokenizer(path, tokenizer)
        self.tokenizer = read_tokenizer_at(file, self.config.text_encoder.vocabulary)
        self.digests: dict = {}  # of the weights, where they were asked for
        self._here: dict[tuple[str, torch.dtype, bool], nn.Module] = {}  # by name, dtype and whether it is streamed

    def parameter_counts(self) -> dict[str, int]:
        """How many parameters each network has."""
        parts = self._checkpoint.parts.items()
        return {part: sum(tensor.numel for tensor in tensors.values()) for part, tensors in parts}

    def stored(self, part: str) -> torch.dtype:
        """What most of the network's tensors are in the file."""
        return Counter(tensor.dtype for tensor in self._checkpoint.parts[part].values()).most_common(1)[0][0]

    def network(self, part: str, dtype: torch.dtype | None = None, streamed: bool = False) -> nn.Module:
        """The network "unet", "vae" or "text_encoder", ready to run: as it is there already, or read now.

        dtype: the model's if None. streamed: the UNet's weights are in memory a layer at a time; it must run with
        gradient checkpointing where a gradient is wanted, and cannot be copied.
        """
        key = part, dtype or self.dtype, streamed
        if key not in self._here:
            with torch.inference_mode(False):  # a caller's would make weights of a kind that no gradient passes
                network, tensors = prepare_network(self._checkpoint, part), self._checkpoint.parts[part]
                (stream if streamed else read_network)(network, tensors, self.device, key[1])
            self._here[key] = network
        return self._here[key]

    def weights(self, part: str, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """Of that network, by name, in order, on the CPU, as the files have them: each is read when it is asked for."""
        for name, stored in sorted(self._checkpoint.parts[part].items()):
            place = torch.empty(stored.shape, dtype=dtype)
            stored.read_into(place)
            yield name, place

    def free_all_but(self, part: str, dtype: torch.dtype, streamed: bool) -> bool:
        """Gives the memory of other networks back, that of mapped files too; whether there was any. What was written to
        their weights is lost."""
        others = self._here.keys() - {(part, dtype, streamed)}
        for key in others:
            self._here.pop(key).to("meta")
            for tensor in self._checkpoint.parts[key[0]].values():
                tensor.release()
        return bool(others)
