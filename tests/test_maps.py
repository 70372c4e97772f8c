"""Attention maps of an edit, recorded on a tiny UNet with random weights."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from minibaret import balanced_attention as bam
from minibaret import baret
from minibaret.errors import InputError
from minibaret.maps import MapCollector, MapRequest, check_request, find_words
from minibaret.models.configs import SD15, VAEConfig
from minibaret.models.injection import Injection
from minibaret.models.recorder import MapRecorder
from minibaret.models.tokenizer import ClipTokenizer
from minibaret.settings import Settings
from minibaret.sheet import PAPER, contact_sheet, heat

SHORT = Settings(steps=5, guidance=3.0, inner_steps=1, learning_rate=1e-2, self_steps=0.4, cross_steps=0.6)


def run(unet, maps=None, settings=SHORT):
    torch.manual_seed(1)
    latents, target, null = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 24), torch.randn(1, 5, 24)
    work = baret.run(unet, latents, target, null, settings, collector=maps)
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def softmax_maps(unet, latents, context):
    """The maps of a plain forward's first self and cross site, by the definition."""
    block = unet.down_blocks[0].attentions[0].transformer_blocks[0]
    seen = []
    handles = [
        site.register_forward_hook(lambda site, inputs, out: seen.append((site, inputs)))
        for site in (block.attn1, block.attn2)
    ]
    unet(latents, torch.tensor(7), context)
    for handle in handles:
        handle.remove()
    found = []
    for site, (x, text, *_) in seen:
        q = site.to_q(x).unflatten(-1, (2, 8))
        k = site.to_k(x).unflatten(-1, (2, 8)) if text is None else text[0]
        found.append((torch.einsum("bnhd,bmhd->bhnm", q, k) / 8**0.5).softmax(-1).mean(1))
    return found


def test_a_recorder_sees_the_maps_that_attention_uses(unet):
    latents, context = torch.randn(3, 4, 8, 8), torch.randn(3, 5, 24)
    itself, cross = softmax_maps(unet, latents, context)
    first = MapRecorder([2, 0], [4, 1], [(3, 5)], (8, 8))
    block = unet.down_blocks[0].attentions[0].transformer_blocks[0]
    plain = unet(latents, torch.tensor(7), context)
    assert torch.equal(unet(latents, torch.tensor(7), context, recorder=first), plain)
    assert first.cross_maps.shape == (2, 2, 8, 8) and first.self_maps.shape == (2, 1, 8, 8)
    assert torch.allclose(first.self_maps.sum((-1, -2)), torch.ones(2, 1), atol=1e-5)
    alone = MapRecorder([2, 0], [4, 1], [(3, 5)], (8, 8))
    features = unet.down_blocks[0].resnets[0](unet.conv_in(latents), unet.time_embedding(torch.tensor([7.0]).expand(3)))
    unet.down_blocks[0].attentions[0](features, unet.project_text(context)[0], (None, None), alone)
    assert torch.allclose(alone.cross_maps, cross[[2, 0]][..., [4, 1]].mT.unflatten(-1, (8, 8)), atol=1e-6)
    assert torch.allclose(alone.self_maps, itself[[2, 0], 3 * 8 + 5].view(2, 1, 8, 8), atol=1e-6)
    assert block.attn1.heads == 2


def test_injected_rows_show_the_map_they_take(unet):
    latents, context = torch.randn(3, 4, 8, 8), torch.randn(3, 5, 24)
    recorder = MapRecorder([0, 1, 2], [1, 2], [(0, 7)], (8, 8))
    unet(latents, torch.tensor(7), context, Injection((0, 1, 0), (0, 1, 1)), recorder)
    assert torch.equal(recorder.cross_maps[2], recorder.cross_maps[1])
    assert torch.equal(recorder.self_maps[2], recorder.self_maps[0])
    assert not torch.equal(recorder.cross_maps[0], recorder.cross_maps[1])


@pytest.mark.parametrize("rigid", [False, True])
def test_maps_of_every_process_at_the_steps_asked_for(unet, rigid):
    settings = dataclasses.replace(SHORT, rigid=rigid)
    collector = MapCollector(MapRequest(("dog", "lying"), ((3, 60),), steps=(0, 4)), [[1], [2, 3]], (8, 8), 8)
    maps = run(unet, collector, settings).maps
    assert set(maps.words) == set(maps.points) == {0, 4}
    for step in (0, 4):
        assert set(maps.words[step]) == set(bam.PROCESSES)
        assert all(value.shape == (2, 8, 8) for value in maps.words[step].values())
        assert all(value.shape == (1, 8, 8) for value in maps.points[step].values())
    assert torch.equal(maps.words[0]["edit"], maps.words[0]["transition"])  # injected
    assert not torch.equal(maps.words[4]["edit"], maps.words[4]["transition"])  # no longer
    assert torch.equal(maps.words[0]["transition"], maps.words[0]["reconstruction"]) == rigid
    assert torch.equal(maps.of_word("lying", "edit", 4), maps.words[4]["edit"][1])
    mean = (maps.words[0]["edit"][0] + maps.words[4]["edit"][0]) / 2
    assert torch.allclose(maps.of_word("dog", "edit"), mean)


def test_recording_does_not_change_the_edit(unet):
    plain = run(unet)
    recorded = run(unet, MapCollector(MapRequest(("dog",)), [[1]], (8, 8), 8))
    assert plain.maps is None and len(recorded.maps.words) == 5
    assert torch.allclose(plain.latents["edit"], recorded.latents["edit"], atol=1e-4)


def test_points_fall_on_the_latents_of_the_models_own_vae():
    config = dataclasses.replace(SD15, vae=VAEConfig(channels=(8, 16, 16)))
    assert (SD15.latent_factor, config.latent_factor, config.size_multiple) == (8, 4, 32)
    collector = MapCollector(MapRequest(points=((3, 60),)), [], (32, 32), config.latent_factor)
    assert collector.recorder(0, bam.all_rows(0, SHORT)).points == [(15, 0)]


def test_words_are_found_in_the_text():
    tokenizer = ClipTokenizer([("d", "o"), ("do", "g</w>")])
    assert find_words(("Dog", "on"), "a dog on a dog", tokenizer) == [[2, 6], [3, 4]]
    for word in ("cat", "\udcff"):
        with pytest.raises(InputError, match=r"is not in 'a dog'"):
            find_words((word,), "a dog", tokenizer)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (MapRequest(), "words or points"),
        (MapRequest(points=((128, 0),)), "points must lie in the picture of 128×96 pixels, got 128, 0"),
        (MapRequest(("dog",), steps=(5,)), "steps to look at must be from 0 to 4"),
        (MapRequest(("dog",), levels=(2,)), "levels to look at must be from 0 to 1"),
    ],
)
def test_a_request_that_does_not_fit_is_said(request_, said):
    with pytest.raises(InputError, match=said):
        check_request(request_, (128, 96), 5, 2)


def test_heat_is_brightest_where_the_value_is():
    drawn = heat(Image.new("RGB", (8, 8), "grey"), torch.eye(8))
    brightness = torch.from_numpy(np.array(drawn.convert("L"), dtype=np.int64))
    assert brightness.diagonal().min() > brightness[~torch.eye(8, dtype=torch.bool)].max()


def test_a_title_wider_than_the_pictures_widens_the_sheet():
    picture = Image.new("RGB", (32, 32), "red")
    narrow = contact_sheet([[picture]], ["dog"])
    sheet = np.asarray(contact_sheet([[picture]], ["dog"], "a title that is far wider than the picture under it"))
    assert sheet.shape[1] > 4 * narrow.width
    assert (sheet[:, :4] == PAPER).all() and (sheet[:, -4:] == PAPER).all()  # no letter is cut off
    red = np.argwhere((sheet == (255, 0, 0)).all(-1))
    assert len(red) == 32 * 32 and abs(red[:, 1].mean() - sheet.shape[1] / 2) < 1
