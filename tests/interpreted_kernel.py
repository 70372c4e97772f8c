"""The Triton kernel on the CPU, in Triton's interpreter. tests/test_triton.py runs this file in a process of its own
with TRITON_INTERPRET=1, since a process cannot switch; pytest does not collect it by itself."""

import itertools

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

from minibaret.kernels import attention, reference, triton_attention, triton_problem

PAIR = [[(0, 0, 0)], [(0, 0, 1)]]
TAKES = {  # of three rows each
    "each its own": [[(row, row, row)] for row in range(3)],
    "one map of two rows": PAIR,
    "one map of three rows": [[(2, 2, 0)], [(2, 2, 1)], [(2, 2, 2)]],
    "a pair among others": [[(0, 0, 0)], [(1, 1, 1)], [(0, 0, 2)]],
    "keys and values of another row": [[(0, 0, 0)], [(1, 0, 0)]],
    "queries of another row": [[(1, 0, 2)], [(1, 0, 1)], [(2, 1, 1)]],
    "a sum": [[(0, 0, 0)], [(0, 0, 1), (1, 1, 2)]],
    "a sum of three, two of one map": [[(0, 0, 0), (0, 0, 1), (1, 2, 2)], [(0, 0, 2)]],
    "the same twice": [[(0, 0, 0), (1, 1, 1)], [(0, 0, 0)]],
}
DTYPES = [torch.float16, torch.bfloat16, torch.float32]
SHAPES = list(itertools.product([40, 80, 160, 24], [64, 100, 130], ["text", "self"]))
SHAPES += itertools.product([32, 64, 96], [16, 77], ["text", "self"])  # the miniature's widths
CASES = [(*shape, DTYPES[i % 3], list(TAKES)[i % 9 - i // 9 % 2], 1 + i // 2 % 2) for i, shape in enumerate(SHAPES)]


@pytest.fixture(autouse=True)
def same_random_numbers():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def bfloat16_is_rounded(monkeypatch):
    """As a GPU does; the interpreter cuts float32 off."""
    convert = interpreter._convert_float

    def rounded(data, before, after, rounding):
        if (before, after) != (tl.float32, tl.bfloat16):
            return convert(data, before, after, rounding)
        bits = data.view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)

    monkeypatch.setattr(interpreter, "_convert_float", rounded)


def tensors(features, tokens, keys, dtype, heads=1, rows=3):
    """q, k and v as the projections leave them: slices of a wider tensor, whose other elements are NaN."""

    def make(length):
        wide = torch.full((rows + 1, length + 1, heads, features + 8), float("nan"), dtype=dtype)
        x = wide[:rows, :length, :, :features]
        return x.copy_(torch.randn(x.shape))

    return make(tokens), make(keys), make(keys)


def error(out, exact):
    return (out.double() - exact).abs().max().item()


@pytest.mark.parametrize(("features", "tokens", "kind", "dtype", "takes", "heads"), CASES)
def test_the_kernel_errs_at_most_twice_as_much_as_pytorch(features, tokens, kind, dtype, takes, heads):
    takes = TAKES[takes]
    q, k, v = tensors(features, tokens, 77 if kind == "text" else tokens, dtype, heads)
    out = torch.full((len(takes), tokens, heads, features), float("nan"), dtype=dtype)
    numbers = [number for row, terms in enumerate(takes) for take in terms for number in (row, *take)]
    triton_attention.launch(q, k, v, numbers, out)
    exact = reference.attention(q.double(), k.double(), v.double(), takes)
    assert error(out, exact) <= 2 * error(attention(q, k, v, takes, "torch"), exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("keys", [77, 130])
def test_at_logits_of_30_it_errs_at_most_twice_as_much_as_sdpa(keys, dtype):
    q, k, v = tensors(40, 64, keys, torch.float32)
    q *= 30 / torch.einsum("gnhd,gmhd->ghnm", q, k).mul(40**-0.5).abs().max()
    q, k, v = (x.to(dtype) for x in (q, k, v))
    exact = reference.attention(q.double(), k.double(), v.double(), PAIR)
    assert error(attention(q, k, v, PAIR, "triton"), exact) <= 2 * error(attention(q, k, v, PAIR, "torch"), exact)


@pytest.mark.parametrize("keys", [77, 130])
def test_large_scores_do_not_overflow(keys):
    q, k, v = (100 * x for x in tensors(40, 64, keys, torch.float16))
    exact = reference.attention(q.double(), k.double(), v.double(), PAIR)
    assert error(attention(q, k, v, PAIR, "triton"), exact) <= 2e-3 * exact.abs().max()


def test_more_rows_than_one_launch_holds():
    q, k, v = tensors(24, 16, 16, torch.float32, rows=19)
    takes = [[(row, row, row)] for row in range(19)] + [[(18, 17, 16), (0, 0, 18)]]
    exact = reference.attention(q.double(), k.double(), v.double(), takes)
    assert error(attention(q, k, v, takes, "triton"), exact) < 2e-6


def test_the_operator_is_one_that_pytorch_can_trace():
    q, k, v = tensors(40, 20, 20, torch.float16)
    torch.library.opcheck(
        triton_attention.traceable,
        (q, k, v, [0, 0, 0, 0, 1, 0, 0, 1, 1, 1, 1, 2], 2),
        test_utils=("test_schema", "test_faketensor"),
    )


class Injected(torch.nn.Module):
    def forward(self, q, k, v):
        return 2 * attention(q, k, v, TAKES["a sum"], implementation="triton")


def test_compiled_and_exported_it_is_the_same():
    q, k, v = tensors(40, 20, 20, torch.float16)
    eager = Injected()(q, k, v)
    compiled = torch.compile(Injected(), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, k, v), eager)
    program = torch.export.export(Injected(), (q, k, v))
    assert any("fused_attention" in str(node.target) for node in program.graph.nodes)
    assert torch.equal(program.module()(q, k, v), eager)


def test_the_first_launch_works_where_kernels_can_run():
    assert triton_problem("cpu") is None


def test_automatic_is_pytorch_where_there_is_no_gpu():
    q, k, v = tensors(40, 20, 20, torch.float16)
    assert torch.equal(attention(q, k, v, PAIR), attention(q, k, v, PAIR, "torch"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x.double(), "it takes float16 or bfloat16"),
        (lambda x: x[..., :12], "multiples of 8 up to 160, got 12"),
        (lambda x: x.repeat(1, 1, 1, 8), "multiples of 8 up to 160, got 192"),
        (lambda x: x.repeat(1, 1, 1, 2)[..., 1:9], "its offset is 1 elements"),
        (lambda x: x.repeat(1, 1, 1, 2)[..., ::2], "features must be adjacent"),
        (lambda x: x.clone().requires_grad_(), "it has no backward pass"),
        (lambda x: x.expand(1025, 4, 1, 24), "up to 1024 rows"),
        (
            lambda x: torch.empty_strided(x.shape, (2**33, 2**30, 24, 1), dtype=x.dtype, device="meta"),
            "span less than 2\\*\\*31",
        ),
    ],
)
def test_what_the_kernel_cannot_take_is_said(change, said):
    x = change(torch.randn(1, 4, 1, 24, dtype=torch.float16))
    with pytest.raises(ValueError, match=f"^the Triton kernel cannot be used here: .*{said}"):
        attention(x, x, x, implementation="triton")
