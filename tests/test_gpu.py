"""On a real GPU: the kernel as it is launched, at the sizes of Stable Diffusion 1.5."""

import pytest
import torch

import minibaret
from minibaret import Savings
from minibaret.images import psnr
from minibaret.kernels import attention, attention_maps, reference, torch_sdpa, triton_attention
from minibaret.miniature.world.drawing import render
from minibaret.miniature.world.scene import Scene

READY = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0) and triton_attention.INSTALLED
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not READY, reason="there is no CUDA GPU of compute capability 8.0 with triton here"),
]
SOURCES = [None, (0, 1, 2, 3, 0, 2), (0, 0), (1, 1, 1, 0)]


def tensors(tokens, keys, features, dtype, source):
    rows, sources = (2, 2) if source is None else (len(source), max(source) + 1)
    shapes = [(sources, tokens), (sources, keys), (rows, keys)]
    return [torch.randn(*shape, 8, features, device="cuda", dtype=dtype) for shape in shapes]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("tokens", "keys", "features"),
    [(4096, 4096, 40), (4096, 77, 40), (1024, 1024, 80), (1024, 77, 80), (256, 256, 160), (64, 64, 160), (64, 77, 160),
     (130, 130, 40), (1296, 1296, 80), (77, 100, 24), (100, 100, 152),
     (256, 256, 32), (256, 77, 32), (64, 64, 64), (64, 77, 64), (16, 16, 96), (16, 77, 96)],
)  # fmt: skip
def test_the_kernel_errs_at_most_twice_as_much_as_pytorch(tokens, keys, features, dtype, source):
    q, k, v = tensors(tokens, keys, features, dtype, source)
    out = attention(q, k, v, source, "triton")
    exact = torch.cat([reference.attention(q[g:][:1].double(), k[g:][:1].double(), v[b:][:1].double())
                       for b, g in enumerate(source or range(len(v)))])  # fmt: skip
    allowed = 2 * (reference.attention(q, k, v, source).double() - exact).abs().max()
    assert (out.double() - exact).abs().max() <= allowed
    assert torch.equal(out, attention(q, k, v, source))  # it is what auto takes, and the same every time


@pytest.mark.parametrize(("tokens", "features"), [(4096, 40), (1024, 80), (256, 160)])
def test_shared_is_unshared_bit_for_bit(tokens, features):
    q, k, v = tensors(tokens, tokens, features, torch.float16, (0, 1, 0, 1, 1))
    rows = [0, 1, 0, 1, 1]
    assert torch.equal(attention(q, k, v, rows, "triton"), attention(q[rows], k[rows], v, None, "triton"))


def test_maps_are_those_of_pytorch():
    q, k, _ = tensors(4096, 77, 40, torch.float16, (0, 1))
    wanted = attention_maps(q.double(), k.double(), keys=[3, 76], implementation="torch")
    assert (attention_maps(q, k, keys=[3, 76], implementation="triton") - wanted).abs().max() < 1e-5


def test_compiled_it_is_the_same():
    q, k, v = tensors(256, 256, 160, torch.float16, (0, 1, 0))
    compiled = torch.compile(lambda q, k, v: attention(q, k, v, (0, 1, 0), "triton"), fullgraph=True)
    assert torch.equal(compiled(q, k, v), attention(q, k, v, (0, 1, 0), "triton"))


@pytest.mark.parametrize("savings", [Savings(), Savings(True, True, True, max_rows=2)])
def test_an_edit_is_the_cpus(savings):
    dog = render(Scene(1, "dog", "standing", "brown", "grass"))
    editors = [minibaret.load(device=device, savings=savings) for device in ("cpu", "cuda")]
    settings = editors[0].settings(steps=3, inner_steps=1)
    cpu, gpu = (editor.edit(dog, "a brown dog lying down on grass", settings) for editor in editors)
    assert psnr(gpu.image, cpu.image) > 35 and psnr(gpu.reconstruction, cpu.reconstruction) > 35
    assert sum(gpu.seconds.values()) > 0 and gpu.peak_memory > 20e6


def test_a_gradient_is_given_by_pytorch():
    q, k, v = tensors(64, 77, 40, torch.float16, (0, 0))
    q.requires_grad_()
    assert torch.equal(attention(q, k, v, (0, 0)), torch_sdpa.attention(q, k, v, (0, 0)))
    with pytest.raises(ValueError, match="no backward pass"):
        attention(q, k, v, (0, 0), "triton")
