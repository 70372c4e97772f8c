"""Control by branch: what `by_row` makes of it, and that the UNet then computes what replaced maps would give."""

import copy

import pytest
import torch
from runs import sharpened
from torch import Tensor

from minibaret.control import Layer, Row, RowControl, Rows, Take, by_row, check_takes
from minibaret.errors import InputError
from minibaret.models import unet as unet_module

SELF, CROSS = (Layer(kind, 0, 64, "down", 0) for kind in ("self", "cross"))
ROWS = tuple(Row(branch, kind) for branch in ("source", "edit") for kind in (False, True))
LONE = (Row("source", True), Row("edit", False), Row("edit", True))  # a source without guidance
WORDS = torch.rand(77, 77, dtype=torch.float64)


# By rows


def test_what_is_not_named_is_the_rows_own():
    assert by_row({}, ROWS) is None
    assert by_row({"edit": ()}, ROWS) is None
    assert by_row({"other": Take(q="edit")}, ROWS) is None  # a branch that is not there
    found = by_row({"edit": Take(q="source", k="source")}, ROWS)  # the rows with the prompt only
    assert found == Rows(
        q=(0, 1, 2),  # of row 3 neither queries nor keys
        k=(0, 1, 2),
        v=(0, 1, 2, 3),
        words=(),
        takes=(((0, 0, 0),), ((1, 1, 1),), ((2, 2, 2),), ((1, 1, 3),)),
    )


def test_both_rows_take_those_of_their_own_guidance():
    found = by_row({"edit": Take(k="source", v="source", rows="both")}, ROWS)
    assert found.takes == (((0, 0, 0),), ((1, 1, 1),), ((2, 0, 0),), ((3, 1, 1),))
    assert (found.q, found.k, found.v) == ((0, 1, 2, 3), (0, 1), (0, 1))


def test_both_rows_take_the_one_of_a_branch_without_guidance():
    found = by_row({"edit": Take(q="source", k="source", rows="both")}, LONE)
    assert found.takes == (((0, 0, 0),), ((0, 0, 1),), ((0, 0, 2),)) and found.q == found.k == (0,)


def test_takes_are_summed_and_words_are_further_values():
    takes = {"edit": [Take(q="source", k="source", words=WORDS), Take(words=2 * WORDS)]}
    found = by_row(takes, ROWS)
    assert found.takes == (((0, 0, 0),), ((1, 1, 1),), ((2, 2, 2),), ((1, 1, 4), (3, 3, 5)))
    assert found.v == (0, 1, 2, 3) and [place for place, _ in found.words] == [3, 3]
    assert found.words[0][1] is WORDS and torch.equal(found.words[1][1], 2 * WORDS)


def test_a_sum_for_the_rows_with_the_prompt_may_be_one_take_for_the_others():
    takes = {"edit": [Take(q="source", rows="both"), Take(k="source")]}
    found = by_row(takes, ROWS)
    assert (found.q, found.k, found.v) == ((0, 1, 3), (0, 1, 2, 3), (0, 1, 2, 3))
    assert found.takes[2:] == (((0, 2, 2),), ((1, 3, 3), (2, 1, 3)))


# In the UNet


CONTROLS = {
    "maps of another": (ROWS, {"self": {"edit": Take(q="source", k="source")}}),
    "maps of another, both rows": (ROWS, {"cross": {"edit": Take(q="source", k="source", rows="both")}}),
    "keys and values": (ROWS, {"self": {"edit": Take(k="source", v="source", rows="both")}}),
    "from a lone row": (LONE, {"self": {"edit": Take(q="source", k="source", rows="both")}}),
    "queries only, both kinds": (ROWS, {"self": {"edit": Take(q="source")}, "cross": {"edit": Take(q="source")}}),
    "maps whose columns are mixed": (ROWS, {"cross": {"edit": Take(q="source", k="source", words=WORDS)}}),
    "a sum": (ROWS, {"cross": {"edit": [Take(q="source", k="source", words=WORDS), Take(words=1 - WORDS)]}}),
    "each from the other": (ROWS, {"self": {"edit": Take(v="source"), "source": Take(q="edit", rows="both")}}),
    "from itself": (ROWS, {"self": {"edit": Take(q="edit", k="edit", v="edit")}}),
}


def expected_rows(rows, takes) -> list[list[tuple[int, int, int, Tensor | None]]]:
    """The documentation of `Take`, in other words than the code's: of each row, (q, k, v, words) of its terms."""
    found = []
    for index, (branch, conditional) in enumerate(rows):
        terms = takes.get(branch, [])
        terms = [t for t in (terms if isinstance(terms, list) else [terms]) if conditional or t.rows == "both"]

        def place(name, index=index, conditional=conditional) -> int:
            same = [i for i, row in enumerate(rows) if row == (name, conditional)]
            return index if name is None else (same or [rows.index((name, True))])[0]

        found.append([(place(t.q), place(t.k), place(t.v), t.words) for t in terms] or [(index, index, index, None)])
    return found


def unet_with_maps(unet, latents, context, rows, control) -> Tensor:
    """Every map in memory: softmax(q kᵀ / √D) W for every term, and its product with the values."""

    def attention(q, k, v, takes=None, implementation="auto"):
        kind = "cross" if k.shape[1] == 77 else "self"
        out = torch.zeros_like(q)
        for index, terms in enumerate(expected_rows(rows, control.get(kind, {}))):
            for i, j, source, words in terms:
                maps = (torch.einsum("nhd,mhd->hnm", q[i], k[j]) / q.shape[-1] ** 0.5).softmax(-1)
                out[index] += torch.einsum("hnm,mhd->nhd", maps if words is None else maps @ words.to(maps), v[source])
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unet_module, "attention", attention)
        return unet(latents, torch.tensor(401), context)


def controlled(unet, latents, context, rows, control, recorders=()) -> Tensor:
    layers = unet.layers(*latents.shape[-2:])
    takes = {layer: control[layer.kind] for layer in layers if layer.kind in control}
    return unet(latents, torch.tensor(401), context, RowControl(3, rows, takes, recorders))


@pytest.mark.parametrize("name", CONTROLS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_control_is_replacing_maps_in_memory(unet, within, name, dtype):
    """In float64, as exact as that; in others, erring at most twice as much as the maps in memory do."""
    rows, control = CONTROLS[name]
    sharpened(unet).to(dtype)
    exact_unet = copy.deepcopy(unet).double()
    latents, context = torch.randn(len(rows), 4, 8, 8).to(dtype), torch.randn(len(rows), 77, 24).to(dtype)
    exact = unet_with_maps(exact_unet, latents.double(), context.double(), rows, control)
    found = controlled(unet, latents, context, rows, control)
    error = (found - exact).norm() / exact.norm()
    if dtype == torch.float64:
        allowed = 5e-13
        within(f"control, {name}: against maps in memory", error.item(), allowed)
    else:
        allowed = 2 * (unet_with_maps(unet, latents, context, rows, control) - exact).norm() / exact.norm()
        assert error <= allowed
    uncontrolled = exact_unet(latents.double(), torch.tensor(401), context.double())
    assert ((uncontrolled - exact).norm() / exact.norm() > allowed) == (name != "from itself")


@torch.no_grad()
def test_a_take_leaves_other_branches_alone(unet):
    unet.double()
    latents, context = torch.randn(4, 4, 8, 8, dtype=torch.float64), torch.randn(4, 77, 24, dtype=torch.float64)
    plain = unet(latents, torch.tensor(401), context)
    found = controlled(unet, latents, context, ROWS, {"self": {"edit": Take(q="source", k="source")}})
    assert torch.allclose(found[:3], plain[:3], rtol=0, atol=1e-12)
    assert (found[3] - plain[3]).abs().max() > 1e-4


@pytest.mark.parametrize("rows", [ROWS, LONE])
@torch.no_grad()
def test_features_are_what_a_res_block_adds_to_its_input(unet, rows):
    unet.double()
    latents = torch.randn(len(rows), 4, 8, 8, dtype=torch.float64)
    context = torch.randn(len(rows), 77, 24, dtype=torch.float64)
    features = [layer for layer in unet.layers(8, 8) if layer.kind == "features"]
    blocks = [block for part in unet.blocks for block in part.resnets]
    assert len(features) == len(blocks) and [layer.index for layer in features] == list(range(len(blocks)))
    for layer, block in zip(features, blocks):
        takes = {layer: {"edit": Take(v="source", rows="both")}}
        found = unet(latents, torch.tensor(401), context, RowControl(0, rows, takes))
        source = [0, 1, 0, 1] if rows is ROWS else [0, 0, 0]
        handle = block.conv2.register_forward_hook(lambda conv, inputs, out, source=source: out[source])
        replaced = unet(latents, torch.tensor(401), context)
        handle.remove()
        assert torch.allclose(found, replaced, rtol=0, atol=1e-12)
        assert (found - unet(latents, torch.tensor(401), context)).abs().max() > 1e-6


def test_layers_are_listed_in_the_order_they_run(unet):
    """With the queries of each, seen by counting tokens in a forward."""
    seen = []
    for module in unet.modules():
        if hasattr(module, "to_q"):
            module.to_q.register_forward_hook(lambda module, inputs, out: seen.append(out.shape[1]))
        if hasattr(module, "conv2"):
            module.conv2.register_forward_hook(lambda module, inputs, out: seen.append(out[0, 0].numel()))
    unet(torch.randn(1, 4, 16, 8), torch.tensor(1), torch.randn(1, 77, 24))
    layers = unet.layers(16, 8)
    assert [layer.tokens for layer in layers] == seen and len({*layers}) == len(layers)
    for kind in ("self", "cross", "features"):
        found = [layer.index for layer in layers if layer.kind == kind]
        assert found == list(range(len(found)))
    assert {layer.tokens: layer.level for layer in layers} == {128: 0, 32: 1}
    parts = [layer.part for layer in layers if layer.kind == "features"]
    assert parts == ["down", "down", "mid", "mid", "up", "up", "up", "up"]
    assert [layer.part for layer in layers if layer.kind == "self"] == ["down", "mid", "up", "up"]


# Recorders


class Watcher:
    """Keeps every map that it is shown of the branches it looks at, mean of the heads."""

    def __init__(self, *branches: str):
        self.branches, self.maps, self.asked = branches, {}, []

    def wants(self, step: int, layer: Layer) -> bool:
        self.asked.append((step, layer))
        return True

    def see(self, step, layer, branch, terms) -> None:
        assert step == 3
        maps = 0
        for q, k, words in terms:
            term = (torch.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5).softmax(-1)
            maps = maps + (term if words is None else term @ words)
        self.maps[layer, branch] = maps[0]


@pytest.mark.parametrize("name", ["maps of another", "a sum", "keys and values"])
@torch.no_grad()
def test_a_recorder_sees_the_maps_that_are_used_of_rows_with_the_prompt(unet, name):
    unet.double()
    rows, control = CONTROLS[name]
    latents = torch.randn(4, 4, 8, 8, dtype=torch.float64)
    context = torch.randn(4, 77, 24, dtype=torch.float64)
    watcher, used = Watcher("source", "edit"), []
    plain = controlled(unet, latents, context, rows, control)
    assert torch.equal(controlled(unet, latents, context, rows, control, (watcher,)), plain)

    def attention(q, k, v, takes=None, implementation="auto"):
        terms = expected_rows(rows, control.get("cross" if k.shape[1] == 77 else "self", {}))
        maps = torch.stack(
            [
                sum(
                    (torch.einsum("nhd,mhd->hnm", q[i], k[j]) / q.shape[-1] ** 0.5).softmax(-1)
                    @ (torch.eye(k.shape[1], dtype=q.dtype) if words is None else words)
                    for i, j, _, words in of_row
                )
                for of_row in terms
            ]
        )
        used.append(maps)
        values = torch.stack([v[of_row[0][2]] for of_row in terms])
        return torch.einsum("bhnm,bmhd->bnhd", maps, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unet_module, "attention", attention)
        unet(latents, torch.tensor(401), context)
    layers = [layer for layer in unet.layers(8, 8) if layer.kind != "features"]
    assert watcher.asked == [(3, layer) for layer in layers] and len(used) == len(layers)
    for layer, maps in zip(layers, used):
        assert torch.allclose(watcher.maps[layer, "source"], maps[1], rtol=0, atol=1e-12)
        assert torch.allclose(watcher.maps[layer, "edit"], maps[3], rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_recorder_of_one_branch_sees_no_other(unet):
    watcher = Watcher("edit")
    controlled(unet, torch.randn(4, 4, 8, 8), torch.randn(4, 77, 24), ROWS, {}, (watcher,))
    assert {branch for _, branch in watcher.maps} == {"edit"} and len(watcher.maps) == len(watcher.asked)


# One graph


@torch.no_grad()
def test_the_forward_traces_as_one_graph(unet):
    rows, control = CONTROLS["a sum"]
    latents, context = torch.randn(4, 4, 8, 8), torch.randn(4, 77, 24)
    takes = {layer: control["cross"] for layer in unet.layers(8, 8) if layer.kind == "cross"}
    by_rows = RowControl(0, rows, takes)
    compiled = torch.compile(unet, backend="eager", fullgraph=True, dynamic=False)
    found = compiled(latents, torch.tensor(7), context, by_rows)
    assert torch.allclose(found, unet(latents, torch.tensor(7), context, by_rows), atol=1e-6)


# What a control may give


@pytest.mark.parametrize(
    ("takes", "kind", "sentence"),
    [
        (Take(q="source"), "self", "a control must give takes by branch, .*, got Take"),
        ({"edit": "source"}, "self", "a branch takes a Take or several, got 'source' for 'edit'"),
        ({"edit": Take(k="other")}, "self", "may name the branches source, edit, got 'other'"),
        ({"edti": Take(k="source")}, "self", "may name the branches source, edit, got 'edti'"),
        ({"edit": [Take(v="source"), Take()]}, "features", "from one branch, got a sum of 2 takes for 'edit'"),
        ({"edit": Take(words=WORDS)}, "self", "in cross-attention only, got them for a layer of self"),
        ({"edit": Take(words=WORDS[:3])}, "cross", r"of shape \(77, 77\), got \(3, 77\)"),
        ({"edit": Take(words=WORDS.tolist())}, "cross", r"of shape \(77, 77\), got list"),
    ],
)
def test_takes_that_no_branch_could_use(takes, kind, sentence):
    with pytest.raises(InputError, match=sentence):
        check_takes(takes, Layer(kind, 0, 64, "up", 0), ("source", "edit"), 77)


def test_takes_that_branches_can_use():
    for kind in ("self", "cross", "features"):
        layer = Layer(kind, 0, 64, "up", 0)
        assert check_takes(None, layer, ("edit",), 77) == {}
        takes = {"edit": [Take(v="source")]}
        assert check_takes(takes, layer, ("source", "edit"), 77) is takes
    takes = {"edit": [Take(words=WORDS), Take(q="source", rows="both")]}
    assert check_takes(takes, CROSS, ("source", "edit"), 77) is takes


def test_rows_of_a_take():
    with pytest.raises(InputError, match="must be cond or both, got 'uncond'"):
        Take(q="source", rows="uncond")
