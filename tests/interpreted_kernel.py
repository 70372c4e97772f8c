"""The Triton kernel on the CPU, in Triton's interpreter. tests/test_triton.py runs this file in a process of its own
with TRITON_INTERPRET=1, since a process cannot switch; pytest does not collect it by itself."""

import itertools

import pytest
import torch

from minibaret.kernels import attention, attention_maps, reference, triton_attention

TABLES = [(0, 1), (0, 0), (0, 1, 0), (1, 0, 1, 1), (1,), (2, 2, 2, 0, 0, 1)]
DTYPES = [torch.float16, torch.bfloat16, torch.float32]
SHAPES = list(itertools.product([40, 80, 160, 24], [64, 77, 100, 130], ["text", "self"]))
SHAPES += itertools.product([32, 64, 96], [16, 64, 77], ["text", "self"])  # the miniature's widths
CASES = [(*shape, DTYPES[i % 3], TABLES[i // 2 % len(TABLES)], 1 + i // 2 % 2) for i, shape in enumerate(SHAPES)]


@pytest.fixture(autouse=True)
def same_random_numbers():
    torch.manual_seed(0)


def tensors(features, tokens, keys, dtype, source, heads=1):
    """q, k and v as the projections leave them: slices of a wider tensor, whose other elements are NaN."""

    def make(rows, length):
        wide = torch.full((rows + 1, length + 1, heads, features + 8), float("nan"), dtype=dtype)
        x = wide[:rows, :length, :, :features]
        return x.copy_(torch.randn(x.shape))

    return make(max(source) + 1, tokens), make(max(source) + 1, keys), make(len(source), keys)


def error(out, exact):
    return (out.double() - exact).abs().max().item()


@pytest.mark.parametrize(("features", "tokens", "kind", "dtype", "source", "heads"), CASES)
def test_the_kernel_errs_at_most_twice_as_much_as_pytorch(features, tokens, kind, dtype, source, heads):
    keys = 77 if kind == "text" else tokens
    q, k, v = tensors(features, tokens, keys, dtype, source, heads)
    out = torch.full((len(source), tokens, heads, features), float("nan"), dtype=dtype)
    lse = torch.full((len(source), heads, tokens), float("nan"))
    triton_attention.launch(q, k, v, source, out, lse)
    exact = reference.attention(q.double(), k.double(), v.double(), source)
    assert error(out, exact) <= 2 * error(reference.attention(q, k, v, source), exact)
    scores = torch.einsum("gnhd,gmhd->ghnm", q.double(), k.double()) * features**-0.5
    assert error(lse, scores.logsumexp(-1)[list(source)]) < 1e-5


@pytest.mark.parametrize(("features", "dtype"), [(40, torch.float16), (80, torch.bfloat16), (160, torch.float32)])
def test_shared_is_unshared_bit_for_bit(features, dtype):
    source = (2, 0, 2, 2, 0, 1)
    q, k, v = tensors(features, 77, 77, dtype, source, heads=2)
    shared, sums = triton_attention.attention_and_lse(q, k, v, source)
    rows = list(source)
    unshared, sums_unshared = triton_attention.attention_and_lse(q[rows], k[rows], v)
    assert torch.equal(shared, unshared) and torch.equal(sums, sums_unshared)
    assert torch.equal(shared, triton_attention.attention(q, k, v, source))


def test_large_scores_do_not_overflow():
    q, k, v = (100 * x for x in tensors(40, 64, 77, torch.float16, (0, 0)))
    exact = reference.attention(q.double(), k.double(), v.double(), (0, 0))
    assert error(triton_attention.attention(q, k, v, (0, 0)), exact) <= 2e-3 * exact.abs().max()


@pytest.mark.parametrize(("features", "dtype"), [(40, torch.float16), (24, torch.bfloat16), (160, torch.float32)])
@pytest.mark.parametrize("heads", ["mean", "each"])
def test_maps_are_those_of_pytorch(features, dtype, heads):
    q, k, _ = tensors(features, 100, 77, dtype, (0, 1), heads=2)
    for queries, keys in (([99, 0, 64], None), (None, [5, 76])):
        maps = attention_maps(q, k, queries, keys, heads, implementation="triton")
        wanted = attention_maps(q.double(), k.double(), queries, keys, heads, implementation="torch")
        assert maps.shape == wanted.shape and error(maps, wanted) < 1e-6


def test_the_operator_is_one_that_pytorch_can_trace():
    q, k, v = tensors(40, 20, 20, torch.float16, (0, 1, 0))
    torch.library.opcheck(
        triton_attention.fused_attention,
        (q, k, v, [0, 1, 0], True),
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
    )


class Injected(torch.nn.Module):
    def forward(self, q, k, v):
        return 2 * attention(q, k, v, (0, 1, 0), implementation="triton")


def test_compiled_and_exported_it_is_the_same():
    q, k, v = tensors(40, 20, 20, torch.float16, (0, 1, 0))
    eager = Injected()(q, k, v)
    compiled = torch.compile(Injected(), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, k, v), eager)
    program = torch.export.export(Injected(), (q, k, v))
    assert any("fused_attention" in str(node.target) for node in program.graph.nodes)
    assert torch.equal(program.module()(q, k, v), eager)


def test_automatic_is_pytorch_where_there_is_no_gpu():
    q, k, v = tensors(40, 20, 20, torch.float16, (0, 0))
    assert torch.equal(attention(q, k, v, (0, 0)), attention(q, k, v, (0, 0), "torch"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x.double(), "it takes float16 or bfloat16"),
        (lambda x: x[..., :12], "multiples of 8 up to 160, got 12"),
        (lambda x: x.repeat(1, 1, 1, 8), "multiples of 8 up to 160, got 192"),
        (lambda x: x.repeat(1, 1, 1, 2)[..., 1:9], "its offset is 1 elements"),
        (lambda x: x.repeat(1, 1, 1, 2)[..., ::2], "features must be adjacent"),
        (lambda x: x.clone().requires_grad_(), "it has no backward pass"),
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
