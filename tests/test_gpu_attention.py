"""The operator on a real GPU, at the sizes of Stable Diffusion 1.5."""

import pytest
import torch

from minibaret.kernels import attention, attention_maps, reference, torch_sdpa, triton_problem

PROBLEM = triton_problem("cuda") if torch.cuda.is_available() else "there is no CUDA GPU here"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))]
TAKES = {  # of three rows each
    "each its own": [[(row, row, row)] for row in range(3)],
    "a pair among others": [[(0, 0, 0)], [(1, 1, 1)], [(0, 0, 2)]],
    "one map of three rows": [[(2, 2, 0)], [(2, 2, 1)], [(2, 2, 2)]],
    "keys and values of another row": [[(0, 0, 0)], [(1, 0, 0)]],
    "a sum": [[(0, 0, 0)], [(0, 0, 1), (1, 1, 2)]],
}
PAIR = TAKES["a pair among others"]


def tensors(tokens, keys, features, dtype):
    return [torch.randn(3, n, 8, features, device="cuda", dtype=dtype) for n in (tokens, keys, keys)]


def error(out, exact):
    return (out.double() - exact).abs().max().item()


@pytest.mark.parametrize("takes", TAKES.values(), ids=TAKES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("tokens", "keys", "features"),
    [(4096, 4096, 40), (4096, 77, 40), (1024, 1024, 80), (1024, 77, 80), (256, 256, 160), (64, 64, 160), (64, 77, 160),
     (130, 130, 40), (1296, 1296, 80), (77, 100, 24), (100, 150, 152),
     (256, 256, 32), (256, 77, 32), (64, 64, 64), (64, 77, 64), (16, 16, 96), (16, 77, 96)],
)  # fmt: skip
def test_the_kernel_errs_at_most_twice_as_much_as_pytorch(tokens, keys, features, dtype, takes):
    q, k, v = tensors(tokens, keys, features, dtype)
    out = attention(q, k, v, takes, "triton")
    by_head = [reference.attention(*(x[:, :, [head]].double() for x in (q, k, v)), takes) for head in range(8)]
    exact = torch.cat(by_head, dim=2)  # a head at a time: the maps of all in float64 are gigabytes
    assert error(out, exact) <= 2 * error(attention(q, k, v, takes, "torch"), exact)
    assert torch.equal(out, attention(q, k, v, takes, "triton"))  # the same every time


@pytest.mark.parametrize("keys", [77, 4096])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_at_logits_of_30_both_err_at_most_twice_as_much_as_sdpa(keys, dtype):
    q, k, v = (x.float() for x in tensors(1024, keys, 40, dtype))
    q *= 30 / torch.einsum("gnhd,gmhd->ghnm", q, k).mul(40**-0.5).abs().max()
    q, k, v = (x.to(dtype) for x in (q, k, v))
    exact = reference.attention(q.double(), k.double(), v.double(), PAIR)
    plain = torch_sdpa.attention(q[[0, 1, 0]], k[[0, 1, 0]], v, tuple(((row, row, row),) for row in range(3)))
    for implementation in ("torch", "triton"):
        assert error(attention(q, k, v, PAIR, implementation), exact) <= 2 * error(plain, exact)


def test_automatic_takes_the_kernel_where_rows_share_a_map():
    q, k, v = tensors(1024, 1024, 80, torch.float16)
    assert torch.equal(attention(q, k, v, PAIR), attention(q, k, v, PAIR, "triton"))
    assert torch.equal(attention(q, k, v), attention(q, k, v, implementation="torch"))


def test_maps_are_those_of_the_cpu():
    q, k, _ = tensors(1024, 77, 40, torch.float16)
    wanted = attention_maps(q.cpu().double(), k.cpu().double())
    assert (attention_maps(q, k).cpu() - wanted).abs().max() < 1e-3


def test_compiled_it_is_the_same():
    q, k, v = tensors(256, 256, 160, torch.float16)
    compiled = torch.compile(lambda q, k, v: attention(q, k, v, TAKES["a sum"], "triton"), fullgraph=True)
    assert torch.equal(compiled(q, k, v), attention(q, k, v, TAKES["a sum"], "triton"))


def test_it_can_be_captured_in_a_graph():
    q, k, v = tensors(1024, 77, 80, torch.float16)
    expected = attention(q, k, v, TAKES["a sum"], "triton")  # compiled here, not while capturing
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attention(q, k, v, TAKES["a sum"], "triton")
    graph.replay()
    assert torch.equal(out, expected)


def test_a_gradient_is_given_by_pytorch():
    q, k, v = tensors(1024, 77, 40, torch.float16)
    q.requires_grad_()
    assert torch.equal(attention(q, k, v, PAIR), attention(q, k, v, PAIR, "torch"))
    with pytest.raises(ValueError, match="no backward pass"):
        attention(q, k, v, PAIR, "triton")
