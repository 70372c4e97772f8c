"""Attention maps of an edit, kept while it runs, on a UNet of random weights."""

import dataclasses
import math
from functools import partial

import pytest
import torch
from runs import PROMPT, QUICK, drain, sharpened

from minibaret import sheet
from minibaret.control import Layer, Row, RowControl
from minibaret.errors import InputError
from minibaret.maps import MapCollector, MapRequest, check_request, find_words
from minibaret.methods import METHODS, Job
from minibaret.methods.baret import BaretKnobs
from minibaret.models.tokenizer import ClipTokenizer

BRANCHES = ("reconstruction", "transition", "edit")
SHORT = BaretKnobs(**{**QUICK, "steps": 5, "inner_steps": 1}, self_steps=0.4, cross_steps=0.6)


def run(sd, collector=None, **changes) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    recorders = (collector,) if collector else ()
    job = Job(torch.randn(1, 4, 8, 8), PROMPT, pictures=BRANCHES, recorders=recorders)
    return drain(METHODS["baret"].edit(sd, job, dataclasses.replace(SHORT, **changes)))[1]


def collector(words, tokens, **where) -> MapCollector:
    return MapCollector(MapRequest(words, **where), {name: list(tokens) for name in MapCollector.branches}, (8, 8))


def test_maps_are_those_of_the_definition(unet):
    """softmax(q kᵀ / √D), mean of the heads: of one layer, at the words asked for."""
    latents, context, found = (
        torch.randn(1, 4, 8, 8),
        torch.randn(1, 77, 24),
        collector(("dog", "lying down"), ([4], [1, 2]), levels=(0,)),
    )
    block = unet.down_blocks[0].attentions[0].transformer_blocks[0]
    seen = []
    block.attn2.register_forward_hook(lambda layer, inputs, out: seen.append(inputs))
    control = RowControl(0, [Row("edit", True)], {}, [found])
    first, layers = found.see, []
    found.see = lambda step, layer, *more: (layers.append(layer), layer.index == 0 and first(step, layer, *more))
    unet(latents, torch.tensor(7), context, control)
    assert {layer.level for layer in layers} == {0}
    ((x, text, *_),) = seen
    q, k = block.attn2.to_q(x).unflatten(-1, (2, 8)), block.attn2.to_k(text).unflatten(-1, (2, 8))
    definition = (torch.einsum("bnhd,bmhd->bhnm", q, k) / math.sqrt(8)).softmax(-1).mean(1)[0]
    words = found.maps.words[0]["edit"]
    assert torch.allclose(words[0], definition[:, 4].view(8, 8), atol=1e-6)
    assert torch.allclose(words[1], definition[:, 1:3].mean(1).view(8, 8), atol=1e-6)


@pytest.mark.parametrize("rigid", [False, True])
def test_maps_of_every_branch_at_the_steps_asked_for(small, rigid):
    sharpened(small.model.unet)
    found = collector(("dog", "lying"), ([1], [2, 3]), steps=(0, 4))
    run(small.sd, found, rigid=rigid)
    maps, middle = found.maps, "reconstruction" if rigid else "transition"
    assert set(maps.words) == {0, 4} and maps.branches == {"reconstruction", middle, "edit"}
    for step in (0, 4):
        assert all(value.shape == (2, 8, 8) for value in maps.words[step].values())
        assert torch.equal(maps.words[step]["edit"], maps.words[step][middle]) == (step == 0)  # taken, then no longer
    assert torch.equal(maps.of_word("lying", "edit", 4), maps.words[4]["edit"][1])
    mean = (maps.words[0]["edit"][0] + maps.words[4]["edit"][0]) / 2
    assert torch.allclose(maps.of_word("dog", "edit"), mean)
    for asked in (("cat", "edit"), ("dog", "source"), ("dog", "edit", 3)):
        with pytest.raises(
            InputError, match=r"maps were kept of dog, lying; edit, reconstruction.*; steps \[0, 4\]; got"
        ):
            maps.of_word(*asked)


def test_a_map_whose_columns_are_mixed_is_seen_as_it_is_used():
    """A sum of takes with words, as prompt-to-prompt refines a prompt."""
    q, (k, other), words = torch.randn(1, 64, 2, 8), torch.randn(2, 1, 77, 2, 8), torch.rand(77, 77)
    found = collector(("dog",), ([5],))
    layer = Layer("cross", 0, 64, "down", 0)
    found.see(2, layer, "edit", [(q, k, words), (q, other, None)])

    def definition(k):
        return (torch.einsum("bnhd,bmhd->bhnm", q, k) / math.sqrt(8)).softmax(-1).mean(1)[0]

    wanted = (definition(k) @ words + definition(other))[:, 5].view(8, 8)
    assert torch.allclose(found.maps.words[2]["edit"][0], wanted, atol=1e-6)


def test_keeping_maps_does_not_change_the_edit(small):
    sharpened(small.model.unet)
    plain, found = run(small.sd), collector(("dog",), ([1],))
    kept = run(small.sd, found)
    assert len(found.maps.words) == 5
    for name in BRANCHES:  # more rows in a batch, summed in another order
        assert (plain[name] - kept[name]).abs().max() < 1e-4 * plain[name].std()


def test_an_editor_keeps_the_maps_that_are_asked_for(small, picture):
    request = MapRequest(("dog", "lying down"), steps=(1,))
    result = small.edit(picture, PROMPT, maps=request, **QUICK)
    assert set(result.maps.words) == {1} and result.maps.branches == {*BRANCHES}
    assert result.maps.words[1]["edit"].shape == (2, 4, 4)
    assert small.edit(picture, PROMPT, **QUICK).maps is None


def test_a_word_is_looked_for_in_the_branch_s_own_prompt(small, picture, monkeypatch):
    """Source and edit have "dog" at different places, and "big" only the edit's prompt."""
    run = partial(small.edit, picture, method="prompt-to-prompt", source_prompt="a dog", pictures="all", steps=3)
    result, alone = run("a big dog", maps=MapRequest(("big", "dog"))), run("a dog", maps=MapRequest(("dog",)))
    assert torch.allclose(result.maps.of_word("dog", "source"), alone.maps.of_word("dog", "source"), atol=1e-6)
    assert result.maps.of_word("big", "source").isnan().all() and result.maps.of_word("big", "edit").isfinite().all()
    monkeypatch.setattr(sheet, "contact_sheet", lambda rows, *_: rows)
    empty = {row[0][1][0]: [picture is None for picture, _ in row] for row in sheet.maps_sheet(result, "a big dog")}
    assert empty == {"source": [False, True, False], "edit": [False, False, False]}


def test_words_are_found_in_the_prompt():
    tokenizer = ClipTokenizer([("d", "o"), ("do", "g</w>")])
    assert find_words(("Dog", "on"), "a dog on a dog", tokenizer) == [[2, 6], [3, 4]]
    for word in ("cat", "\udcff"):
        with pytest.raises(InputError, match=r"is not in 'a dog'"):
            find_words((word,), "a dog", tokenizer)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (MapRequest(()), "words to look at, got none"),
        (MapRequest(("dog",), steps=(5,)), "steps to look at must be from 0 to 4"),
        (MapRequest(("dog",), levels=(2,)), "levels to look at must be from 0 to 1"),
    ],
)
def test_a_request_that_does_not_fit_is_said(request_, said):
    with pytest.raises(InputError, match=said):
        check_request(request_, 5, 2)
