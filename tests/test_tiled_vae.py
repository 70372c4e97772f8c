"""The VAE in tiles gives the pictures of the whole one, in less memory."""

import pytest
import torch
from PIL.Image import Resampling

from minibaret import tiled_vae
from minibaret.bench.common import peak_bytes
from minibaret.images import to_pixels
from minibaret.models.configs import VAEConfig
from minibaret.models.vae import VAE


@pytest.mark.parametrize("size", [(256, 192), (64, 416), (512, 512)])
@torch.no_grad()
def test_tiles_change_the_picture_by_less_than_can_be_seen(editor, picture, within, size):
    vae, pixels = editor.model.vae, to_pixels(picture.resize(size, Resampling.BICUBIC))
    latents = vae.encode(pixels)
    error = (tiled_vae.encode(vae, pixels) - latents).abs().max() / latents.std()
    within(f"tiled VAE, latents at {size[0]}×{size[1]}, of their deviation", error.item(), 1e-5)
    error = (tiled_vae.decode(vae, latents) - vae.decode(latents)).abs().max() * 127.5
    within(f"tiled VAE, picture at {size[0]}×{size[1]}, of 255", error.item(), 1e-3)


@pytest.mark.parametrize("strip", [1, 1000, 2**14])
@torch.no_grad()
def test_tiles_of_any_height_and_norms_that_matter(monkeypatch, strip):
    """One row a strip to several, odd ones at the end; random weights, so that nothing is near its average."""
    monkeypatch.setattr(tiled_vae, "STRIP", strip)
    vae = VAE(VAEConfig(channels=(8, 16, 24, 24), groups=4)).eval()
    for weight in vae.parameters():
        weight.normal_(1.0 if weight.dim() == 1 else 0.0, 0.5 if weight.dim() == 1 else weight[0].numel() ** -0.5)
    pixels = torch.randn(2, 3, 88, 40)
    before = pixels.clone()
    latents = vae.encode(pixels)
    assert torch.allclose(tiled_vae.encode(vae, pixels), latents, rtol=1e-4, atol=1e-4 * latents.std())
    picture = vae.decode(latents)
    assert torch.allclose(tiled_vae.decode(vae, latents), picture, rtol=1e-4, atol=1e-4 * picture.std())
    assert torch.equal(pixels, before)  # what is overwritten is its own


@torch.no_grad()
def test_tiles_of_a_whole_network_would_show_where_these_do_not(editor, picture):
    """The limit of 2/255 is one that a network run over two halves does not keep."""
    vae = editor.model.vae
    latents = vae.encode(to_pixels(picture.resize((256, 256), Resampling.BICUBIC)))
    whole = vae.decode(latents)
    halves = torch.cat([vae.decode(latents[:, :, :24])[:, :, :128], vae.decode(latents[:, :, 8:])[:, :, 64:]], dim=2)
    assert (halves - whole).abs().max() * 127.5 > 2
    assert (tiled_vae.decode(vae, latents) - whole).abs().max() * 127.5 < 1e-3


@torch.no_grad()
def test_tiles_take_less_memory(monkeypatch):
    vae = VAE(VAEConfig(channels=(32, 64, 64, 64), groups=8)).eval()
    pixels, latents = torch.randn(1, 3, 256, 256), torch.randn(1, 4, 32, 32)
    monkeypatch.setattr(tiled_vae, "STRIP", 2**17)
    for whole, tiles in (
        (lambda: vae.encode(pixels), lambda: tiled_vae.encode(vae, pixels)),
        (lambda: vae.decode(latents), lambda: tiled_vae.decode(vae, latents)),
    ):
        assert peak_bytes(tiles, pixels.device) < 0.6 * peak_bytes(whole, pixels.device)
