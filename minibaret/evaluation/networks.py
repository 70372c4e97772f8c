"""The networks that some metrics look with: the model's own CLIP pair, or published ones from a folder. Nothing is
downloaded.

    clip/                       CLIP ViT-L/14, as Hugging Face has openai/clip-vit-large-patch14
    dino/                       DINO ViT-B/8, as Hugging Face has facebook/dino-vitb8
    squeezenet1_1.safetensors   torchvision's tensors, under its names: LPIPS's backbones
    alexnet.safetensors
    inception.safetensors       the tensors of torch-fidelity's Inception, for the FID
"""

import importlib
import json
import tempfile
from collections.abc import Iterable
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn

from ..errors import InputError
from ..images import to_pixels
from ..models.image_encoder import ImageTower
from ..pipeline import StableDiffusion
from ..weights.files import open_file

BACKBONES = {"squeeze": "squeezenet1_1.safetensors", "alex": "alexnet.safetensors"}
# Mean and standard deviation of red, green and blue that a network was trained with.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP_COLOURS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
DINO_SIDE, DINO_LONGEST = 224, 480  # pixels: of the shorter side, unless the other gets longer


class Missing(Exception):
    """What a metric needs is not here: the message says what, in a few words."""


def library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise Missing("needs minibaret[eval]") from None


class Networks:
    """Each is read when it is first needed, and raises Missing where it is not there."""

    def __init__(self, folder: Path | None = None, sd: StableDiffusion | None = None, tower: ImageTower | None = None):
        """sd, tower: the model's own CLIP pair, where it has one. Raises InputError where the folder is none."""
        if folder and not folder.is_dir():
            raise InputError(f"networks must be a folder with some of clip, dino, …, but {folder} is no folder")
        self.folder, self.sd, self.tower = folder, sd, tower

    @torch.no_grad()
    def similarity(self, picture: Image.Image, prompt: str) -> float:
        """Cosine of picture and prompt in the space of the published CLIP, else of the model's own pair."""
        if self.tower and not self._has("clip"):
            return (pooled_text(self.sd, self.tower, prompt) @ self.tower.image_encoder(to_pixels(picture)).T).item()
        model, tokenizer = self._clip
        tokens = tokenizer([prompt], return_tensors="pt", truncation=True)
        side = model.config.vision_config.image_size
        pixels = (to_pixels(ImageOps.fit(picture, (side, side), Image.Resampling.BICUBIC)) + 1) / 2
        found = model(pixel_values=normalised(pixels, CLIP_COLOURS), **tokens)
        return F.cosine_similarity(found.image_embeds, found.text_embeds).item()

    @torch.no_grad()
    def lpips(self, backbone: str, a: Image.Image, b: Image.Image) -> float:
        """Zhang et al. 2018, version 0.1."""
        return self._lpips(backbone)(to_pixels(a), to_pixels(b)).item()

    @torch.no_grad()
    def keys(self, picture: Image.Image) -> Tensor:
        """(tokens, 768), of DINO's last layer.

        As in PnPInversion's evaluation, whose figures are published: pixels go to DINO as 0 … 255, not 0 … 1, with
        ImageNet's normalisation all the same.
        """
        pixels = (to_pixels(picture) + 1) * 127.5
        scale = min(DINO_SIDE / min(picture.size), DINO_LONGEST / max(picture.size))
        size = [round(side * scale) for side in reversed(picture.size)]
        pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False)
        found: list[Tensor] = []
        layer = [m for name, m in self._dino.named_modules() if name.endswith((".k_proj", ".key"))][-1]
        hook = layer.register_forward_hook(lambda _module, _inputs, output: found.append(output[0]))
        try:
            self._dino(normalised(pixels, IMAGENET), interpolate_pos_encoding=True)
        finally:
            hook.remove()
        return found[0]

    def fid(self, pictures: Iterable[Image.Image], others: Iterable[Image.Image]) -> float:
        """Fréchet distance (Heusel et al. 2017) of two sets: of Inception's features, else of the model's own CLIP
        pair's, which others' figures cannot be compared with."""
        distance = library("torchmetrics.image.fid").FrechetInceptionDistance(**self._features)
        for real, each in ((False, pictures), (True, others)):
            for picture in each:
                distance.update(((to_pixels(picture) + 1) * 127.5).round().byte(), real=real)
        return distance.compute().item()

    @cached_property
    def _features(self) -> dict:
        """What torchmetrics takes as the network of the FID."""
        if self._has("inception.safetensors"):
            tensors = open_file(self.folder / "inception.safetensors")
            with tempfile.NamedTemporaryFile(suffix=".pth") as file:  # the one form that torch-fidelity reads
                torch.save({name: tensor.read() for name, tensor in tensors.items()}, file.name)
                network = library("torchmetrics.image.fid").NoTrainInceptionV3(
                    "inception-v3-compat", ["2048"], file.name
                )
            return {"feature": network}
        if self.tower:
            return {"feature": PairFeatures(self.tower), "input_img_size": (3, 64, 64)}
        raise Missing("needs inception.safetensors")

    def _has(self, name: str) -> bool:
        return self.folder is not None and (self.folder / name).exists()

    def _path(self, name: str) -> Path:
        if not self._has(name):
            raise Missing(f"needs {name}")
        return self.folder / name

    @cached_property
    def _clip(self) -> tuple:
        folder = self._path("clip")
        transformers = library("transformers")
        model = _pretrained(transformers.CLIPModel, folder)
        return model, transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)

    @cached_property
    def _dino(self) -> nn.Module:
        folder = self._path("dino")
        return _pretrained(library("transformers").ViTModel, folder, add_pooling_layer=False)

    @cache  # noqa: B019  networks live as long as their process
    def _lpips(self, backbone: str) -> nn.Module:
        path = self._path(BACKBONES[backbone])
        network = library("lpips").LPIPS(net=backbone, pnet_rand=True, verbose=False)
        tensors = open_file(path)
        names = {name: "features." + name.split(".", 1)[1] for name in network.net.state_dict()}
        absent = [name for name in names.values() if name not in tensors]
        if absent:
            raise InputError(f"{path} must have the tensors of torchvision's network, but has no {absent[0]}")
        network.net.load_state_dict({name: tensors[its].read() for name, its in names.items()})
        return network.eval().requires_grad_(False)


class PairFeatures(nn.Module):
    """A CLIP pair's image half as torchmetrics wants a network: bytes (B, 3, H, W) → (B, width)."""

    def __init__(self, tower: ImageTower):
        super().__init__()
        self.encoder = tower.image_encoder

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        return self.encoder(pixels.float() / 127.5 - 1)


def normalised(pixels: Tensor, colours: tuple) -> Tensor:
    mean, deviation = (torch.tensor(values)[:, None, None] for values in colours)
    return (pixels - mean) / deviation


@torch.no_grad()
def pooled_text(sd: StableDiffusion, tower: ImageTower, caption: str) -> Tensor:
    """The caption in the space that the model's own pair shares with pictures: (1, width)."""
    end = sd.tokens(caption).index(sd.tokenizer.end)
    return tower.project_text(sd.embed(caption).cpu(), torch.tensor([end]))


def _pretrained(kind: type, folder: Path, **options) -> nn.Module:
    """A network of transformers' with all its weights. Raises InputError where some are missing."""
    try:
        network, report = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True, **options)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise InputError(f"{folder} must hold a {kind.__name__}: {str(error).splitlines()[0]}") from None
    if report["missing_keys"]:
        raise InputError(f"{folder} must hold a whole {kind.__name__}, but has no {sorted(report['missing_keys'])[0]}")
    return network.eval().requires_grad_(False)
