"""The methods that edit beside a source: prompt-to-prompt and the inversions before it, MasaCtrl, plug-and-play."""

import pytest
import torch
import torch.nn.functional as F

import minibaret
from minibaret.control import Layer, Row, RowControl
from minibaret.methods import METHODS, Job, null_text
from minibaret.methods.local_blend import LocalBlend
from minibaret.methods.masactrl import mutual_attention
from minibaret.methods.plug_and_play import decoder_layers
from minibaret.methods.prompt_to_prompt import controllers, cross_takes, generate
from minibaret.models.configs import SD15
from minibaret.models.unet import Attention, UNet
from minibaret.progress import run_to_end

SOURCE, PROMPT = "a brown dog standing on grass", "a brown dog lying down on grass"
WITH_WORDS = ("prompt-to-prompt", "null-text", "negative-prompt", "direct")
ALL = (*WITH_WORDS, "masactrl", "plug-and-play")
QUICK = {"steps": 10, "guidance": 3.0}
SHAPE = (1, 4, 4, 4)  # of latents


@pytest.fixture(scope="module")
def sd15():
    """Stable Diffusion 1.5's UNet, without weights."""
    with torch.device("meta"):
        return UNet(SD15.unet)


def edit(model, picture, method, **changes):
    short = {"inner_steps": 2} if method == "null-text" else {}
    return model.edit(picture, PROMPT, method, **{"source_prompt": SOURCE, **QUICK, **short, **changes})


# What a take computes


@pytest.mark.parametrize(
    ("prompt", "reweighted"),  # words, what they weigh, and their tokens by hand
    [
        (PROMPT, []),
        (PROMPT, [("dog", 2.5, [3]), ("lying", -1.0, [4])]),  # one of the source's words, one of the target's own
        ("a zebra dog standing on grass", []),
        ("a zebra dog standing on grass", [("dog", 2.5, [6]), ("zebra", 0.5, [2, 3, 4, 5])]),
    ],
)
def test_takes_are_the_replaced_maps(editor, within, prompt, reweighted):
    """In float64: mixed maps times values, as the formulas say, and no map in the takes."""
    job = Job(torch.zeros(1, 4, 16, 16), prompt, SOURCE)
    knobs = METHODS["prompt-to-prompt"].knobs(reweight=tuple((word, weight) for word, weight, _ in reweighted))
    takes = cross_takes(editor.sd, job, knobs)
    assert len(takes) == (1 if "zebra" in prompt else 2)
    attention, layer = Attention(16, 24, 2).double(), Layer("cross", 0, 9, "up", 0)
    x, context = torch.randn(2, 9, 16, dtype=torch.float64), torch.randn(2, 77, 24, dtype=torch.float64)
    rows = Row("source", True), Row("edit", True)
    out = attention(x, context, RowControl(0, rows, {layer: {"edit": takes}}), layer)

    q, k, v = (
        project(given).unflatten(-1, (2, 8)).transpose(1, 2)
        for project, given in ((attention.to_q, x), (attention.to_k, context), (attention.to_v, context))
    )
    source, own = (q @ k.mT / 8**0.5).softmax(-1)
    weights = torch.ones(77, dtype=torch.float64)
    for _, weight, tokens in reweighted:
        weights[tokens] = weight
    if prompt == PROMPT:  # refine: "lying" and "down", 4 and 5, have no partner
        alphas = torch.ones(77).index_fill(0, torch.tensor([4, 5]), 0)
        mixed = source[..., [0, 1, 2, 3, 0, 0, 5, 6, 7, *range(9, 77)]] * alphas + own * (1 - alphas)
    else:  # replace: "brown", 2, becomes the four tokens of "zebra"
        places = [0, 1, 2, 2, 2, 2, *range(3, 74)]
        mixed = source[..., places] / torch.ones(77).index_fill(0, torch.tensor([2, 3, 4, 5]), 4)
    mixed = mixed * weights
    for row, maps in enumerate((source, mixed)):
        expected = attention.to_out[0]((maps @ v[row]).transpose(0, 1).flatten(1))
        within(f"takes against mixed maps in float64, row {row}", (out[row] - expected).abs().max().item(), 1e-14)
    assert (mixed - own).abs().max() > 1e-3


def test_the_same_prompt_twice_is_the_same_picture_twice(small):
    knobs = METHODS["prompt-to-prompt"].knobs(**QUICK)
    found = run_to_end(generate(small.sd, SOURCE, SOURCE, knobs, SHAPE, seed=3))
    assert torch.allclose(found["source"], found["edit"], atol=1e-5)
    other = run_to_end(generate(small.sd, SOURCE, PROMPT, knobs, SHAPE, seed=3))
    assert torch.allclose(other["source"], found["source"], atol=1e-5)
    assert not torch.allclose(other["edit"], found["edit"], atol=1e-3)
    assert not torch.equal(run_to_end(generate(small.sd, SOURCE, SOURCE, knobs, SHAPE, seed=4))["edit"], found["edit"])


def test_self_maps_are_taken_from_32_squared_on(sd15, editor):
    job = Job(torch.zeros(1, 4, 64, 64), PROMPT, SOURCE)
    control, *_ = controllers(editor.sd, job, METHODS["prompt-to-prompt"].knobs(steps=50))
    layers = sd15.layers(64, 64)
    for step in (0, 19, 20, 39, 40):
        taking = {layer for layer in layers if control(step, layer)}
        small = {layer for layer in layers if layer.kind == "self" and layer.tokens <= 32**2} if step < 20 else set()
        assert taking == small | ({layer for layer in layers if layer.kind == "cross"} if step < 40 else set())


# Local blend


def test_local_blend_is_the_formula_on_recorded_maps(editor):
    job = Job(torch.zeros(1, 4, 16, 16), PROMPT, SOURCE)
    blend, layer = LocalBlend(editor.sd, job, "dog"), Layer("cross", 0, 256, "up", 0)
    words = torch.eye(77).roll(1, 1) / 2
    latents = {name: torch.randn(1, 4, 16, 16) for name in ("source", "edit", "other")}
    sums = {"source": 0, "edit": 0}
    for step in range(3):
        for _ in range(2):  # layers
            terms = {name: [(torch.randn(1, 256, 1, 8) * 9, torch.randn(1, 77, 1, 8), None)] for name in sums}
            terms["edit"].append((*terms["source"][0][:2], words))  # the edit's map is a sum of two
            for name in sums:
                blend.see(step, layer, name, terms[name])
                for q, k, mix in terms[name]:
                    maps = torch.einsum("gnhd,gmhd->ghnm", q, k).div(8**0.5).softmax(-1)[0].mean(0)
                    sums[name] = sums[name] + (maps if mix is None else maps @ mix)
        found = blend.after(step, latents)
        inside = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
        for name in sums:
            pooled = F.max_pool2d(sums[name][:, 3].view(1, 1, 16, 16) / (2 * step + 2), 3, stride=1, padding=1)
            region = pooled / pooled.max() > 0.3
            assert 0.02 < region.float().mean() < 0.98
            inside |= region
        assert torch.equal(found["edit"], torch.where(inside, latents["edit"], latents["source"]))
        assert found["source"] is latents["source"] and found["other"] is latents["other"]


def test_local_blend_upsamples_a_coarse_region_pixel_by_pixel(editor, sd15):
    job = Job(torch.zeros(1, 4, 64, 64), PROMPT, SOURCE)
    blend = LocalBlend(editor.sd.with_unet(sd15), job, "lying")
    assert blend.level == 2
    wanted = {layer.tokens for layer in sd15.layers(64, 64) if blend.wants(0, layer)}
    assert wanted == {16 * 16} and not blend.wants(0, Layer("self", 0, 256, "up", 2))
    blend.sums["edit"][5, 7] = 2.0
    blend.sums["edit"][12, 2] = 0.59
    latents = {"source": torch.zeros(1, 4, 64, 64), "edit": torch.ones(1, 4, 64, 64)}
    expected = torch.zeros(64, 64)
    expected[4 * 4 : 7 * 4, 6 * 4 : 9 * 4] = 1  # three by three of 16², four pixels each; 0.59 is less than 0.3 of 2
    assert torch.equal(blend.after(0, latents)["edit"][0, 0], expected)


def test_local_blend_looks_at_the_coarsest_level_that_has_256_tokens(editor, sd15):
    def level(height, width):
        job = Job(torch.zeros(1, 4, height, width), PROMPT, SOURCE)
        return LocalBlend(editor.sd.with_unet(sd15), job, "dog").level

    assert [level(64, 64), level(64, 96), level(96, 96), level(128, 128)] == [2, 2, 2, 3]
    assert level(32, 32) == 1 and level(8, 8) == 0  # none has as many: the finest


@pytest.mark.parametrize("method", WITH_WORDS)
def test_words_that_the_prompts_lack(small, picture, calls, method):
    said = f"a word to blend by must be in .*, but 'cat' is neither in '{PROMPT}' nor in '{SOURCE}'"
    with pytest.raises(minibaret.InputError, match=said):
        edit(small, picture, method, blend="dog cat")
    said = f"words to reweight must be in the text, but 'standing' is not in '{PROMPT}'"
    with pytest.raises(minibaret.InputError, match=said):
        edit(small, picture, method, reweight=(("standing", 2),))
    assert not calls  # before anything slow
    edit(small, picture, method, steps=1, blend="standing", reweight=(("lying", 2.0),))


@pytest.mark.parametrize(
    ("name", "knob", "value", "said"),
    [
        ("masactrl", "blend", "dog", "blend does nothing beside editor masactrl, got dog"),
        ("masactrl", "reweight", (("lying", 2.0),), "reweight does nothing beside editor masactrl, got lying=2"),
        ("masactrl", "cross_steps", 0.3, "cross-steps does nothing beside editor masactrl, got 0.3"),
        ("p2p", "first_step", 0, "first-step does nothing beside editor p2p, got 0"),
    ],
)
def test_directs_editors_have_their_own_knobs(small, picture, calls, name, knob, value, said):
    with pytest.raises(minibaret.InputError, match=f"^{said}$"):
        edit(small, picture, "direct", editor=name, **{knob: value})
    assert not calls


# Layers


def test_layers_of_masactrl(sd15):
    layers = sd15.layers(64, 64)

    def taking(step, **knobs):
        control = mutual_attention(METHODS["masactrl"].knobs(**knobs))
        return [(layer.kind, layer.index) for layer in layers if control(step, layer)]

    assert taking(3) == []
    assert taking(4) == taking(49) == taking(4, first_layer=10) == [("self", index) for index in range(10, 16)]
    assert taking(0, first_step=0, first_layer=3) == [("self", index) for index in range(3, 16)]
    take = mutual_attention(METHODS["masactrl"].knobs())(4, layers[-1] if layers[-1].kind == "self" else layers[-2])
    assert (take["edit"].q, take["edit"].k, take["edit"].v, take["edit"].rows) == (None, "source", "source", "both")


def test_layers_of_plug_and_play(sd15, editor):
    attending, features = decoder_layers(sd15.layers(64, 64))
    assert [layer.index for layer in attending] == list(range(8, 16))  # up_blocks[1] 1–2, [2] 0–2, [3] 0–2
    assert features == Layer(
        "features", 8 + 2 + 3 + 1, 16 * 16, "up", 2
    )  # after 8 ResBlocks down, 2 mid, 3 up: the 2nd
    attending, features = decoder_layers(
        editor.sd.unet.layers(16, 16)
    )  # the miniature: three levels, two ResBlocks each
    assert [layer.index for layer in attending] == [5, 6, 7, 8, 9]
    assert features == Layer("features", 3 + 2 + 1, 4 * 4, "up", 2)


# Edits


@pytest.mark.parametrize("method", ALL)
def test_every_method_edits_a_picture(small, picture, method):
    result = edit(small, picture, method, pictures=("source",))
    assert result.image.size == (32, 32) and result.images["source"].size == (32, 32)
    assert result.method.name == method and result.latents["edit"].isfinite().all()
    assert not torch.allclose(result.latents["edit"], result.latents["source"], atol=1e-3)


@pytest.mark.parametrize(
    ("method", "rows"),
    [  # of ten steps, beside the ten of the inversion: cross maps are taken for eight of them
        ("prompt-to-prompt", 8 * 4 + 2 * 2),
        ("negative-prompt", 8 * 3 + 2 * 2),  # the source without guidance
        ("direct", 8 * 3 + 2 * 2),  # and replayed: its conditional row only
        ("masactrl", 10 * 4),
        ("plug-and-play", 8 * 3 + 2 * 2),
    ],
)
def test_rows_leave_the_batch_when_nobody_takes_from_them(small, picture, method, rows):
    assert edit(small, picture, method).counts.row_forwards == 10 + rows


def test_masactrl_without_a_source_prompt_needs_one_source_row(small, picture):
    assert edit(small, picture, "masactrl", source_prompt=None).counts.row_forwards == 10 + 10 * 3
    assert edit(small, picture, "direct", editor="masactrl").counts.row_forwards == 10 + 4 * 2 + 6 * 4


@pytest.mark.parametrize("editor_name", ["p2p", "masactrl"])
def test_directs_source_is_the_pictures_latents_exactly(small, picture, editor_name):
    result = edit(small, picture, "direct", editor=editor_name)
    assert torch.equal(result.latents["source"], small.sd.encode(result.input))
    assert torch.equal(result.latents["source"], result.trajectory[0])


def test_null_texts_source_is_where_the_tuning_led(small, picture):
    result = edit(small, picture, "null-text")
    assert len(result.tuned) == 10 and result.counts.gradient_passes == 20
    assert torch.equal(result.latents["source"], result.tuned[-1].latents)
    assert result.images["reconstruction"].size == (32, 32) and result.reconstruction_psnr > 0


def test_a_source_prompt_is_asked_for_where_it_is_needed(small, picture, calls):
    for method in WITH_WORDS:
        with pytest.raises(
            minibaret.InputError, match=f"{method} needs a source prompt that says what the picture shows"
        ):
            small.edit(picture, PROMPT, method)
        assert METHODS[method].needs() == "source prompt"
    assert not calls
    for method in ("masactrl", "plug-and-play"):
        small.edit(picture, PROMPT, method, steps=1)


def test_one_inversion_serves_all_that_begin_with_it(small, picture):
    kept = edit(small, picture, "prompt-to-prompt").kept
    for method, rows in (("negative-prompt", 28), ("direct", 28), ("masactrl", 40)):
        fresh, shared = edit(small, picture, method), edit(small, picture, method, inversion=kept)
        assert shared.counts.row_forwards == rows == fresh.counts.row_forwards - 10
        assert torch.equal(shared.latents["edit"], fresh.latents["edit"])


@pytest.mark.parametrize("method", ALL)
def test_inversion_files(small, picture, tmp_path, method):
    short = {"inner_steps": 2} if method == "null-text" else {}
    file = tmp_path / "dog.safetensors"
    small.invert(picture, PROMPT, method, source_prompt=SOURCE, file=file, **QUICK, **short)
    fresh = edit(small, picture, method)
    read = small.edit(
        picture, PROMPT, method, source_prompt=SOURCE, guidance=3.0, inversion=minibaret.load_inversion(file)
    )
    assert torch.equal(read.latents["edit"], fresh.latents["edit"])
    assert read.counts.gradient_passes == 0 and read.counts.row_forwards <= 40
    other = {"guidance": 4.0} if method == "null-text" else {"steps": 9}
    with pytest.raises(minibaret.InputError, match="does not belong to this run: it was made with"):
        edit(small, picture, method, inversion=minibaret.load_inversion(file), **other)


def test_null_text_tunes_as_published(small, monkeypatch):
    asked = {}
    monkeypatch.setattr(null_text, "tune", lambda *_, **keywords: asked.update(keywords) or iter(()))
    job = Job(torch.zeros(1, 4, 4, 4), PROMPT, SOURCE)
    run_to_end(null_text.invert(small.sd, job, small.settings("null-text", "paper", steps=2)))
    embedding = torch.zeros(1, requires_grad=True)
    rates = [asked["solver"](embedding, i).__self__.lr for i in (0, 10, 49, 150)]
    assert rates == pytest.approx([1e-2, 9e-3, 5.1e-3, 0])
    assert [asked["threshold"](i) for i in (0, 10)] == pytest.approx([1e-5, 2.1e-4])
    assert asked["inner_steps"] == 10 and asked["unconditional"]
