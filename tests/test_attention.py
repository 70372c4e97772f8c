"""The operator against its definition, written out once more here with matrices."""

import pytest
import torch
import torch.nn.functional as F

from minibaret.kernels import attention, attention_maps
from minibaret.kernels.rows import take_rows

EVERYWHERE = ("reference", "torch")  # the Triton kernel has tests of its own


def own(*rows):
    return [[(row, row, row)] for row in rows]


TAKES = {  # of four rows of q and k, six of v
    "each its own": own(0, 1, 2, 3),
    "one row": own(2),
    "every second row": own(1, 3),
    "in no order": own(3, 0, 2),
    "maps of other rows (baret, plug-and-play)": [*own(0, 1, 2, 3), [(0, 0, 4)], [(2, 2, 5)]],
    "three values of one map": [[(3, 3, row)] for row in (0, 1, 2)] + own(1),
    "keys and values of another row (masactrl)": [*own(0, 2), [(1, 0, 0)], [(3, 2, 2)]],
    "sums (prompt-to-prompt refine)": [*own(0, 1), [(0, 0, 4), (1, 1, 5)]],
    "a sum of two values of one map": [[(1, 2, 0), (1, 2, 5)], [(1, 2, 5)]],
    "the same twice": [[(0, 0, 0), (0, 0, 0)], [(0, 0, 0)]],
    "as many maps as rows": [[(0, 0, 0), (1, 1, 0)], [(0, 0, 0)]],
}


def definition(q, k, v, takes):
    out = torch.zeros(len(takes), q.shape[1], *v.shape[2:], dtype=torch.float64)
    for b, h in ((b, h) for b in range(len(takes)) for h in range(q.shape[2])):
        for i, j, row in takes[b]:
            scores = q[i, :, h].double() @ k[j, :, h].double().T / q.shape[-1] ** 0.5
            weights = (scores - scores.max(-1, keepdim=True).values).exp()
            out[b, :, h] += weights / weights.sum(-1, keepdim=True) @ v[row, :, h].double()
    return out


@pytest.mark.parametrize("implementation", EVERYWHERE)
@pytest.mark.parametrize("takes", TAKES.values(), ids=TAKES)
@pytest.mark.parametrize(("keys", "features"), [(77, 24), (20, 96)])
def test_every_implementation_is_the_definition(implementation, takes, keys, features):
    q, k, v = (torch.randn(rows, n, 2, features) for rows, n in ((4, 20), (4, keys), (6, keys)))
    out = attention(q, k, v, takes, implementation)
    assert out.shape == (len(takes), 20, 2, features)
    assert torch.allclose(out.double(), definition(q, k, v, takes), atol=4e-6)


@pytest.mark.parametrize("implementation", EVERYWHERE)
def test_without_takes_it_is_plain_attention(implementation):
    q, k, v = (torch.randn(3, n, 2, 8) for n in (16, 20, 20))
    out = attention(q, k, v, implementation=implementation)
    assert torch.equal(out, attention(q, k, v, own(0, 1, 2), implementation))
    plain = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    assert torch.allclose(out, plain, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("largest", [3, 30], ids="logits up to {}".format)
@pytest.mark.parametrize(("tokens", "keys", "features"), [(64, 64, 40), (300, 300, 32), (64, 77, 80), (32, 32, 160)])
def test_in_half_precision_it_errs_at_most_twice_as_much_as_sdpa(dtype, largest, tokens, keys, features):
    q, k, v = (torch.randn(rows, n, 2, features) for rows, n in ((4, tokens), (4, keys), (6, keys)))
    scores = torch.einsum("gnhd,gmhd->ghnm", q, k) * features**-0.5
    q *= largest / scores.abs().max()
    q, k, v = (x.to(dtype) for x in (q, k, v))
    for name in ("maps of other rows (baret, plug-and-play)", "keys and values of another row (masactrl)"):
        rows = zip(*(take for (take,) in TAKES[name]))
        gathered = (x[list(chosen)].transpose(1, 2) for x, chosen in zip((q, k, v), rows))
        exact = definition(q, k, v, TAKES[name])
        allowed = 2 * rms(F.scaled_dot_product_attention(*gathered).transpose(1, 2), exact)
        out = attention(q, k, v, TAKES[name], "torch")
        assert out.dtype == dtype
        assert rms(out, exact) <= allowed


def rms(out, exact):
    return (out.double() - exact).square().mean().sqrt().item()


@pytest.mark.parametrize("implementation", EVERYWHERE)
def test_strided_input_is_read_where_it_lies(implementation):
    tokens = torch.randn(2, 9, 3 * 32)
    q, k, v = (tokens[..., i * 32 : i * 32 + 32].unflatten(-1, (4, 8)) for i in range(3))
    takes = [[(0, 0, 0)], [(0, 0, 1)]]
    assert torch.allclose(attention(q, k, v, takes, implementation).double(), definition(q, k, v, takes), atol=2e-6)


@pytest.mark.parametrize("rows", [(0, 1, 2), (1, 3), (2,), (2, 2, 2)])
def test_evenly_spaced_rows_are_a_view(rows):
    x = torch.randn(4, 5)
    assert torch.equal(take_rows(x, rows), x[list(rows)])
    assert take_rows(x, rows).untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


@pytest.mark.parametrize("rows", [(0, 1, 3), (3, 2), (1, 0, 1), (0, 0, 1)])
def test_other_rows_are_a_copy(rows):
    x = torch.randn(4, 5)
    assert torch.equal(take_rows(x, rows), x[list(rows)])


@pytest.mark.parametrize("implementation", EVERYWHERE)
@pytest.mark.parametrize("takes", TAKES.values(), ids=TAKES)
def test_gradients_are_those_of_the_definition(implementation, takes):
    inputs = [torch.randn(n, 6, 2, 8, dtype=torch.float64, requires_grad=True) for n in (4, 4, 6)]
    weights = torch.randn(len(takes), 6, 2, 8, dtype=torch.float64)
    wanted = torch.autograd.grad((definition(*inputs, takes) * weights).sum(), inputs)
    got = torch.autograd.grad((attention(*inputs, takes, implementation) * weights).sum(), inputs)
    for a, b in zip(got, wanted):
        assert torch.allclose(a, b, atol=1e-9)


@pytest.mark.parametrize(
    ("shapes", "takes", "said"),
    [
        ([(2, 3, 8)] * 3, None, "must have shape"),
        ([(2, 3, 1, 8), (2, 0, 1, 8), (2, 0, 1, 8)], None, "at least one row, token, head and feature"),
        ([(2, 3, 1, 8), (2, 4, 1, 8), (2, 5, 1, 8)], None, "must have shape"),
        ([(2, 3, 1, 8), (2, 3, 1, 8), (3, 3, 1, 8)], None, "same rows, got 2, 2, 3$"),
        ([(2, 3, 1, 8), (2, 3, 1, 8), (3, 3, 1, 8)], [[(0, 2, 0)]], r"of k in \[0, 2\).*got \(0, 2, 0\)$"),
        ([(2, 3, 1, 8), (2, 3, 1, 8), (3, 3, 1, 8)], [[(0, 0, -1)]], r"of v in \[0, 3\).*got \(0, 0, -1\)$"),
        ([(2, 3, 1, 8), (2, 3, 1, 8), (3, 3, 1, 8)], [[(0, 0)]], r"got \(0, 0\)$"),
        ([(2, 3, 1, 8), (2, 3, 1, 8), (2, 3, 1, 8)], [[(0, 0, 0)], []], "at least one"),
        ([(2, 3, 1, 8), (2, 3, 1, 8), (2, 3, 1, 8)], [], "at least one"),
        ([(2, 3, 1, 8), (2, 3, 1, 8), (2, 3, 1, 8)], [(0, 0, 0)], "list of .* triples"),
        ([(2, 3, 1, 8), (2, 3, 1, 8), (2, 3, 1, 8)], [[(0, 0, 1.0)]], r"got \(0, 0, 1.0\)$"),
    ],
)
def test_what_does_not_fit_is_said(shapes, takes, said):
    with pytest.raises(ValueError, match=said):
        attention(*(torch.randn(shape) for shape in shapes), takes)


def test_an_unknown_implementation_does_not_fall_back():
    x = torch.randn(1, 2, 1, 8)
    with pytest.raises(ValueError, match="got 'flash'"):
        attention(x, x, x, implementation="flash")


def test_the_kernel_asked_for_by_name_says_why_it_cannot():
    x = torch.randn(1, 2, 1, 8, dtype=torch.float16)
    said = "^the Triton kernel cannot be used here: (it runs on CUDA|the triton package)"
    with pytest.raises(ValueError, match=said):
        attention(x, x, x, implementation="triton")


def test_maps_are_the_softmax(monkeypatch):
    monkeypatch.setattr("minibaret.kernels.torch_maps.SCORES", 40)  # several chunks
    q, k = torch.randn(2, 9, 3, 8), torch.randn(2, 7, 3, 8)
    whole = torch.einsum("gnhd,gmhd->gnmh", q, k).div(8**0.5).softmax(2).mean(-1)
    assert torch.allclose(attention_maps(q, k), whole, atol=1e-6)


def test_a_map_of_other_rows_is_refused():
    x = torch.randn(2, 4, 1, 8)
    with pytest.raises(ValueError, match="same rows, got 2 and 1"):
        attention_maps(x, x[:1])
