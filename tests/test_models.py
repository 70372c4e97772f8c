"""The networks: SD1.5's sizes, and each trap that popular rewrites have fallen into."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minibaret.models.configs import SD15, TextEncoderConfig, VAEConfig
from minibaret.models.layers import Downsample, ResnetBlock
from minibaret.models.text_encoder import TextEncoder, quick_gelu
from minibaret.models.unet import Attention, FeedForward, SpatialTransformer, TimeEmbedding, UNet
from minibaret.models.vae import VAE


def on_meta(make):
    with torch.device("meta"):
        return make()


@pytest.mark.parametrize(
    ("make", "parameters", "tensors"),
    [
        (lambda: UNet(SD15.unet), 859_520_964, 686),
        (lambda: TextEncoder(SD15.text_encoder), 123_060_480, 196),
        (lambda: VAE(SD15.vae), 83_653_863, 248),
        (lambda: nn.ModuleList([VAE(SD15.vae).encoder, VAE(SD15.vae).quant_conv]), 34_163_664, 108),
        (lambda: nn.ModuleList([VAE(SD15.vae).decoder, VAE(SD15.vae).post_quant_conv]), 49_490_199, 140),
    ],
)
def test_sd15_has_exactly_its_parameters(make, parameters, tensors):
    network = on_meta(make)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert len(network.state_dict()) == tensors


def test_up_blocks_take_the_widths_of_their_skips():
    unet = on_meta(lambda: UNet(SD15.unet))
    widths = [[resnet.norm1.num_channels for resnet in block.resnets] for block in unet.up_blocks]
    assert widths == [[2560, 2560, 2560], [2560, 2560, 1920], [1920, 1280, 960], [960, 640, 640]]


def test_sites_are_where_sd15_has_them():
    unet = on_meta(lambda: UNet(SD15.unet))
    places = [name for name, module in unet.named_modules() if isinstance(module, SpatialTransformer)]
    assert len(places) == 16
    assert not any(name.startswith(("down_blocks.3", "up_blocks.0")) for name in places)


def test_eps_of_every_group_norm():
    unet, vae = on_meta(lambda: UNet(SD15.unet)), on_meta(lambda: VAE(SD15.vae))
    assert {m.eps for m in vae.modules() if isinstance(m, nn.GroupNorm)} == {1e-6}
    for name, module in unet.named_modules():
        if isinstance(module, nn.GroupNorm):
            assert module.eps == (1e-6 if ".attentions." in name else 1e-5), name
    assert {m.eps for m in unet.modules() if isinstance(m, nn.LayerNorm)} == {1e-5}


def test_heads_are_eight_and_their_width_follows():
    unet = on_meta(lambda: UNet(SD15.unet))
    sites = [m for m in unet.modules() if isinstance(m, Attention)]
    assert len(sites) == 32
    assert {m.to_q.out_features // m.heads for m in sites} == {40, 80, 160}


def test_vae_pads_right_and_bottom_before_it_halves():
    x = torch.randn(1, 4, 6, 6)
    down = Downsample(4, asymmetric=True)
    wanted = F.conv2d(F.pad(x, (0, 1, 0, 1)), down.conv.weight, down.conv.bias, stride=2)
    assert torch.equal(down(x), wanted)
    assert all(d.asymmetric for d in VAE(VAEConfig(channels=(8, 8), groups=4)).modules() if isinstance(d, Downsample))


def test_unet_pads_all_round(unet):
    x = torch.randn(1, 16, 6, 6)
    down = unet.down_blocks[0].downsamplers[0]
    assert torch.allclose(down(x), F.conv2d(x, down.conv.weight, down.conv.bias, stride=2, padding=1))


def test_quick_gelu_is_not_gelu():
    x = torch.linspace(-3, 3, 50)
    assert torch.allclose(quick_gelu(x), x / (1 + torch.exp(-1.702 * x)))
    assert (quick_gelu(x) - F.gelu(x)).abs().max() > 1e-2


def test_time_embedding_begins_with_cosines_and_stays_float32_inside():
    layer = TimeEmbedding(8, 16)
    layer.linear_1 = nn.Linear(8, 8, bias=False)
    layer.linear_1.weight.data = torch.eye(8)
    seen = []
    layer.linear_1.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    layer.linear_2 = nn.Identity()
    layer(torch.tensor([981]))
    frequencies = [10000 ** (-i / 4) for i in range(4)]
    wanted = [math.cos(981 * f) for f in frequencies] + [math.sin(981 * f) for f in frequencies]
    assert torch.allclose(seen[0][0], torch.tensor(wanted), atol=1e-4)
    half = TimeEmbedding(8, 16).to(torch.bfloat16)
    whole = TimeEmbedding(8, 16)
    whole.load_state_dict({name: value.float() for name, value in half.state_dict().items()})
    # 981 is no bfloat16 number: an angle in bfloat16 would be off by radians
    assert (half(torch.tensor([981])).float() - whole(torch.tensor([981]))).abs().max() < 2e-2


def test_resnet_block_shifts_by_the_time():
    block = ResnetBlock(8, 8, 4, 1e-5, time_width=6)
    x, time = torch.randn(2, 8, 4, 4), torch.randn(2, 6)
    h = block.conv1(F.silu(F.group_norm(x, 4, block.norm1.weight, block.norm1.bias, 1e-5)))
    h = h + F.linear(F.silu(time), block.time_emb_proj.weight, block.time_emb_proj.bias)[..., None, None]
    h = block.conv2(F.silu(F.group_norm(h, 4, block.norm2.weight, block.norm2.bias, 1e-5)))
    assert torch.allclose(block(x, time), x + h, atol=1e-6)


def test_text_encoder_looks_back_only_and_ends_with_its_layer_norm():
    config = TextEncoderConfig(vocabulary=50, positions=9, width=16, layers=2, heads=2, mlp_width=32)
    encoder = TextEncoder(config).eval()
    ids = torch.randint(50, (1, 9))
    changed = ids.clone()
    changed[0, 5] = (ids[0, 5] + 1) % 50
    a, b = encoder(ids), encoder(changed)
    assert torch.allclose(a[:, :5], b[:, :5], atol=1e-6)
    assert (a[:, 5:] - b[:, 5:]).abs().amax(-1).min() > 1e-4  # all later tokens, padding too, see the change
    assert torch.allclose(a.mean(-1), torch.zeros(1, 9), atol=1e-5)  # a fresh LayerNorm leaves mean 0, deviation 1
    assert torch.allclose(a.var(-1, unbiased=False), torch.ones(1, 9), atol=1e-3)


def test_vae_scales_the_mean_and_clamps_the_logvar():
    vae = VAE(VAEConfig(channels=(8, 8), layers_per_block=1, groups=4, scaling_factor=0.18215)).eval()
    vae.quant_conv.bias.data[4:] = torch.tensor([100.0, -100.0, 0.0, 0.0])
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    mean, logvar = vae.moments(pixels)
    assert logvar.max() == 20 and logvar.min() == -30
    assert torch.equal(vae.encode(pixels), mean * 0.18215)
    assert torch.allclose(vae.decode(vae.encode(pixels)), vae.decoder(vae.post_quant_conv(mean)), atol=1e-5)


def test_nothing_is_written_into_the_callers_tensors(unet):
    latents, context = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 24)
    before = latents.clone(), context.clone()
    unet(latents, torch.tensor(5), context)
    assert torch.equal(latents, before[0]) and torch.equal(context, before[1])


@pytest.mark.parametrize("piece", [1, 5, 100])
def test_the_feed_forward_layer_is_geglu_in_pieces_of_any_size(piece, monkeypatch):
    monkeypatch.setattr("minibaret.models.unet.PIECE", piece)
    layer = FeedForward(8).double()
    x = torch.randn(2, 6, 8, dtype=torch.float64, requires_grad=True)
    project, back = layer.net[0].proj, layer.net[2]
    hidden = x @ project.weight.T + project.bias
    value, gate = hidden[..., :32], hidden[..., 32:]
    wanted = (value * gate * (1 + torch.erf(gate / 2**0.5)) / 2) @ back.weight.T + back.bias
    out, inputs = layer(x), (x, *layer.parameters())
    assert out.shape == x.shape and torch.allclose(out, wanted, atol=1e-12)
    weights = torch.randn_like(out)
    for ours, theirs in zip(*(torch.autograd.grad((y * weights).sum(), inputs) for y in (out, wanted))):
        assert torch.allclose(ours, theirs, atol=1e-12)
