"""The operator against its definition, written out once more here with matrices."""

import pytest
import torch

from minibaret.kernels import attention, attention_maps, torch_sdpa

EVERYWHERE = ("reference", "torch")  # the Triton kernel has tests of its own

SOURCES = [None, (0, 1, 2, 3), (0, 1, 2, 3, 0, 2), (3, 3, 3, 1, 0, 2), (0, 0), (2,), (1, 0, 1, 0, 1, 0)]


def definition(q, k, v, source):
    rows = source if source is not None else range(len(v))
    out = torch.empty(len(v), q.shape[1], *v.shape[2:], dtype=torch.float64)
    for b, g in enumerate(rows):
        for h in range(q.shape[2]):
            scores = q[g, :, h].double() @ k[g, :, h].double().T / q.shape[-1] ** 0.5
            weights = (scores - scores.max(-1, keepdim=True).values).exp()
            out[b, :, h] = weights / weights.sum(-1, keepdim=True) @ v[b, :, h].double()
    return out


@pytest.mark.parametrize("implementation", EVERYWHERE)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("keys", [77, 20])
def test_every_implementation_is_the_definition(implementation, source, keys):
    rows = 4 if source is None else len(source)
    q, k, v = torch.randn(4, 20, 3, 24), torch.randn(4, keys, 3, 24), torch.randn(rows, keys, 3, 24)
    out = attention(q, k, v, source, implementation)
    assert out.shape == (rows, 20, 3, 24)
    assert torch.allclose(out.double(), definition(q, k, v, source), atol=2e-6)


@pytest.mark.parametrize("source", [(0, 1, 2, 3, 0, 2), (3, 3, 3, 1, 0, 2)])
@pytest.mark.parametrize(("long", "part"), [(1, 2**20), (2048, 1)], ids=["a head at a time", "in parts of the map"])
@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_rows_that_share_long_sequences_on_a_cpu(source, long, part, dtype, within, monkeypatch):
    monkeypatch.setattr(torch_sdpa, "LONG", long)
    monkeypatch.setattr(torch_sdpa, "MAP_PART", part)
    q, k, v = (torch.randn(rows, tokens, 3, 24, dtype=dtype) for rows, tokens in ((4, 50), (4, 37), (6, 37)))
    out = attention(q, k, v, source, "torch")
    assert out.dtype == dtype and torch.allclose(out.double(), definition(q, k, v, source), atol=within)


@pytest.mark.parametrize("implementation", EVERYWHERE)
def test_strided_input_is_read_where_it_lies(implementation):
    tokens = torch.randn(2, 9, 3 * 32)
    q, k, v = (tokens[..., i * 32 : i * 32 + 32].unflatten(-1, (4, 8)) for i in range(3))
    out = attention(q, k, v, (0, 0), implementation)
    assert torch.allclose(out.double(), definition(q, k, v, (0, 0)), atol=2e-6)


@pytest.mark.parametrize("implementation", EVERYWHERE)
def test_gradients_are_those_of_the_definition(implementation):
    inputs = [torch.randn(2, 6, 2, 8, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    inputs.append(torch.randn(3, 6, 2, 8, dtype=torch.float64, requires_grad=True))
    weights = torch.randn(3, 6, 2, 8, dtype=torch.float64)
    wanted = torch.autograd.grad((definition(*inputs, (0, 1, 0)) * weights).sum(), inputs)
    got = torch.autograd.grad((attention(*inputs, (0, 1, 0), implementation) * weights).sum(), inputs)
    for a, b in zip(got, wanted):
        assert torch.allclose(a, b, atol=1e-9)


def test_a_row_that_takes_its_own_map_is_plain_attention():
    q, k, v = (torch.randn(3, 16, 2, 8) for _ in range(3))
    assert torch.equal(attention(q, k, v, (0, 1, 2)), attention(q, k, v))


@pytest.mark.parametrize(
    ("shapes", "source", "said"),
    [
        ([(2, 3, 8)] * 3, None, "must have shape"),
        ([(2, 3, 1, 8), (2, 4, 1, 8), (2, 5, 1, 8)], None, "must have shape"),
        ([(2, 3, 1, 8), (2, 3, 1, 8), (3, 3, 1, 8)], None, "same rows"),
        ([(2, 3, 1, 8), (2, 3, 1, 8), (3, 3, 1, 8)], (0, 1, 2), "each in \\[0, 2\\)"),
        ([(2, 3, 1, 8), (2, 3, 1, 8), (3, 3, 1, 8)], (0, 1), "must hold 3 rows"),
    ],
)
def test_what_does_not_fit_is_said(shapes, source, said):
    with pytest.raises(ValueError, match=said):
        attention(*(torch.randn(shape) for shape in shapes), source)


def test_an_unknown_implementation_does_not_fall_back():
    x = torch.randn(1, 2, 1, 8)
    with pytest.raises(ValueError, match="got 'flash'"):
        attention(x, x, x, implementation="flash")


def test_the_kernel_asked_for_by_name_says_why_it_cannot():
    x = torch.randn(1, 2, 1, 8, dtype=torch.float16)
    said = "^the Triton kernel cannot be used here: (it runs on CUDA|the triton package)"
    with pytest.raises(ValueError, match=said):
        attention(x, x, x, implementation="triton")
    with pytest.raises(ValueError, match=said):
        attention_maps(x, x, implementation="triton")


@pytest.mark.parametrize(("queries", "keys"), [(None, [3, 0]), ([5, 5, 1], None), ([2], [6]), (None, None)])
def test_maps_are_the_softmax_at_the_tokens_asked_for(queries, keys, monkeypatch):
    monkeypatch.setattr("minibaret.kernels.torch_maps.SCORES", 40)  # several chunks
    q, k = torch.randn(2, 9, 3, 8), torch.randn(2, 7, 3, 8)
    whole = torch.einsum("gnhd,gmhd->ghnm", q, k).div(8**0.5).softmax(-1)
    wanted = whole[:, :, queries if queries else slice(None)][..., keys if keys else slice(None)]
    each = attention_maps(q, k, queries, keys, heads="each")
    assert each.shape == wanted.shape and torch.allclose(each, wanted, atol=1e-6)
    assert torch.allclose(attention_maps(q, k, queries, keys), wanted.mean(1), atol=1e-6)


def test_a_map_of_what_is_not_there_is_refused():
    x = torch.randn(1, 4, 1, 8)
    with pytest.raises(ValueError, match=r"keys must be tokens in \[0, 4\), got \[4\]"):
        attention_maps(x, x, keys=[4])
    with pytest.raises(ValueError, match="heads must be mean or each, got 'all'"):
        attention_maps(x, x, heads="all")
    with pytest.raises(ValueError, match="got 'reference'"):
        attention_maps(x, x, implementation="reference")
