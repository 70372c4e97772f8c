"""`StableDiffusion`: prompts to embeddings, pictures to latents and back, latents to predicted noise."""

import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from PIL import Image
from torch import Tensor, nn

from . import tiled_vae
from .control import Row, RowControl, Take
from .errors import InputError
from .images import to_image, to_pixels
from .memory import NO_SAVINGS, Savings, trim
from .models.tokenizer import TextTooLong, is_unicode
from .models.unet import UNet
from .weights import Model, OnDemandModel


@dataclass
class Counts:
    """What the UNet was asked for."""

    row_forwards: int = 0
    gradient_passes: int = 0


class StableDiffusion:
    """The networks, ready to be asked."""

    def __init__(self, model: Model | OnDemandModel, savings: Savings = NO_SAVINGS):
        """savings: of memory; on_demand and unet_dtype only with an OnDemandModel."""
        self.model, self.savings = model, savings
        self.config, self.device, self.tokenizer = model.config, model.device, model.tokenizer
        self.counts = Counts()
        self._unet: UNet | None = None
        self._embeddings: dict[str, Tensor] = {}

    def with_unet(self, unet: UNet) -> "StableDiffusion":
        """The same around another UNet, such as a tuned copy; both count together."""
        other = copy.copy(self)
        other._unet = unet
        return other

    @property
    def unet(self) -> UNet:
        return self._unet or self.network("unet")

    def network(self, part: str) -> nn.Module:
        """The network of that name ("unet", "vae", "text_encoder"), ready to run. Where networks are on demand, the
        others are freed first."""
        if not isinstance(self.model, OnDemandModel):
            return getattr(self.model, part)
        form = part, self._dtype(part), self.savings.streamed and part == "unet"
        if self.savings.on_demand and self.model.free_all_but(*form):
            trim()
        return self.model.network(*form)

    def weights(self, part: str) -> Iterator[tuple[str, Tensor]]:
        """Of the network of that name, by theirs, in order. Where networks are on demand, each is read in its turn."""
        if isinstance(self.model, OnDemandModel):
            return self.model.weights(part, self._dtype(part))
        return iter(sorted(self.network(part).state_dict().items()))

    def _dtype(self, part: str) -> torch.dtype:
        return (self.savings.unet_dtype if part == "unet" else None) or self.model.dtype

    @torch.no_grad()
    def embed(self, prompt: str) -> Tensor:
        """The prompt's embedding (1, 77, width), float32; each prompt is encoded once. Raises InputError for a prompt
        that is too long or not Unicode."""
        if prompt not in self._embeddings:
            ids = torch.tensor([self.tokens(prompt)], device=self.device)
            self._embeddings[prompt] = self.network("text_encoder")(ids).float()
        return self._embeddings[prompt]

    def embed_all(self, prompt: str, source_prompt: str | None) -> None:
        """Encodes what a method may ask for, the empty prompt too, before other networks are read."""
        for text in (prompt, source_prompt or "", ""):
            self.embed(text)

    def tokens(self, prompt: str) -> list[int]:
        """The prompt's 77 ids. Raises InputError as `embed`."""
        if not isinstance(prompt, str) or not is_unicode(prompt):
            raise InputError(f"a prompt must be valid UTF-8 text, got {prompt!r}")
        try:
            return self.tokenizer(prompt)
        except TextTooLong as error:
            raise InputError(str(error)) from None

    @torch.no_grad()
    def encode(self, picture: Image.Image) -> Tensor:
        """RGB picture → scaled latents (1, 4, H/8, W/8), float32."""
        vae = self.network("vae")
        encode = partial(tiled_vae.encode, vae) if self.savings.tiled_vae else vae.encode
        weight = vae.quant_conv.weight
        return encode(to_pixels(picture).to(weight.device, weight.dtype)).float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Image.Image:
        """Scaled latents (1, 4, h, w) → RGB picture, 8 times as large. Raises InputError where numbers overflow, as a
        network's may in float16."""
        vae = self.network("vae")
        trim()  # of what the UNet's layers left, gigabytes at Stable Diffusion's size
        decode = partial(tiled_vae.decode, vae) if self.savings.tiled_vae else vae.decode
        pixels = decode(latents.to(vae.quant_conv.weight.dtype))
        if not pixels.isfinite().all():
            kind = str(pixels.dtype).removeprefix("torch.")
            raise InputError(f"the picture must be of finite numbers, but they overflow in {kind}: try another dtype")
        return to_image(pixels)

    def eps(self, latents: Tensor, timestep: int, context: Tensor, control: RowControl | None = None) -> Tensor:
        """The noise that the UNet predicts in latents (B, 4, h, w), float32, given contexts (B, 77, width), at
        a timestep from 0 to 999. control: whose queries, keys, values and features the rows use where not their own."""
        unet = self.unet
        unet.set_checkpointing(self.savings.checkpointing or self.savings.streamed)
        timesteps = torch.full((), timestep, device=latents.device)  # made there: a copy to a GPU would make it wait
        self.counts.row_forwards += len(latents)
        return unet(latents.to(unet.dtype), timesteps, context.to(unet.dtype), control).float()

    @torch.no_grad()
    def warm_up(self, shape: Sequence[int]) -> bool:
        """On a GPU, or with a UNet that `load` compiles: chooses and compiles what latents of the shape (1, 4, h, w)
        will run, which takes seconds or minutes the first time. It counts for nothing. Where torch.compile cannot do
        it, a warning says so, and the UNet runs as it is. Returns whether there was anything to do."""
        unet = getattr(self.model, "unet", None)  # a network on demand is never compiled, and not read for this
        if self.device.type != "cuda" and (unet is None or "forward" not in vars(unet)):
            return False
        rows, take = (Row("edit", True), Row("source", True)), {"edit": Take(q="source", k="source")}
        latents = torch.zeros(2, *shape[1:], device=self.device)
        layers = [layer for layer in self.unet.layers(*shape[-2:]) if layer.kind != "features"]
        counts, self.counts = self.counts, Counts()
        context, control = torch.cat([self.embed("")] * 2), RowControl(0, rows, dict.fromkeys(layers, take))
        try:
            self.eps(latents, 1, context, control)  # two rows that share every attention map
        except Exception as error:  # whatever torch.compile's backends raise
            if "forward" not in vars(self.unet):
                raise
            del self.unet.forward
            said = str(error).strip().partition("\n")[0][:200]
            warnings.warn(f"the UNet runs uncompiled, since torch.compile failed: {said}", stacklevel=2)
        self.counts = counts
        return True
