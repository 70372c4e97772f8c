"""Training the miniature: what it may see, what its losses measure, and that a run goes on where it stopped."""

import json
import shutil
import threading
from functools import partial
from queue import SimpleQueue

import numpy as np
import pytest
import torch
from torch import nn

from minibaret.errors import InputError
from minibaret.models.text_encoder import TextEncoder
from minibaret.models.unet import UNet
from minibaret.models.vae import VAE
from minibaret.weights import MINIATURE_FOLDER
from minibaret.weights.folder import load_image_encoder, read_config, save_part
from minibaret.weights.miniature.config import MINIATURE
from minibaret.weights.miniature.networks import named_rightly
from minibaret.weights.miniature.training import data
from minibaret.weights.miniature.training import unet as train_unet
from minibaret.weights.miniature.training.clip import _one_word_off, relative_distance, scale_embedding
from minibaret.weights.miniature.training.loop import (
    MeanOverWorkers,
    Stage,
    _average_gradients,
    check_run,
    learning_rate,
    train,
)
from minibaret.weights.miniature.training.stages import STAGES, prepare
from minibaret.weights.miniature.training.unet import training_latents
from minibaret.weights.miniature.world.drawing import render
from minibaret.weights.miniature.world.scene import HELD_OUT_SEEDS, SWEEP_SEEDS, TRAINING_SEEDS, Scene
from minibaret.weights.strict import load_part

BUT_THE_UNET = ("text_encoder", "image_encoder", "vae")


def test_training_cannot_reach_a_held_out_scene(tmp_path):
    held_out = {*SWEEP_SEEDS, *HELD_OUT_SEEDS}
    assert data.training_scene(0).seed == TRAINING_SEEDS[0]
    assert data.training_scene(len(TRAINING_SEEDS) - 1).seed not in held_out
    with pytest.raises(IndexError):
        data.training_scene(len(TRAINING_SEEDS))
    pictures = data.training_pictures(tmp_path, 3, size=32)
    assert pictures.shape == (3, 32, 32, 3) and pictures.std() > 10
    assert np.array_equal(data.training_pictures(tmp_path, 3, size=32), pictures)  # kept, not drawn again


@pytest.mark.parametrize("name", ["clip", "vae", "unet"])
def test_a_stage_sees_no_scene_but_of_the_training_seeds(name, tmp_path, monkeypatch):
    seen, begin = set(), Scene.__post_init__
    monkeypatch.setattr(Scene, "__post_init__", lambda scene: (seen.add(scene.seed), begin(scene)))
    stage = STAGES[name](tmp_path, MINIATURE_FOLDER, 2)
    stage.loss(4, torch.Generator().manual_seed(0))
    assert {TRAINING_SEEDS[0], TRAINING_SEEDS[1]} <= seen <= {*TRAINING_SEEDS}


def test_captions_follow_the_attributes():
    captions = data.all_captions()
    assert len(captions) == 4 * 4 * 3 * 6 * 6  # colour and ground may each be left open
    scene = Scene(5, "bird", "spreading wings", "white", "snow", "a red hat")
    assert captions[data.attributes(scene)] == "a white bird spreading wings on snow with a red hat"
    assert captions[data.attributes(scene, ("colour", "ground"))] == "a bird spreading wings with a red hat"


def test_one_word_off_is_one_attribute_off():
    captions = data.all_captions()
    rng = np.random.default_rng(0)
    for row in list(captions)[::97]:
        other = _one_word_off(np.array(row), rng, captions)
        changed = [place for place in range(5) if row[place] != other[place]]
        assert len(changed) == 1 and row[changed[0]] != data.UNNAMED


def test_relative_distance_looks_from_the_first_difference_to_the_end():
    ids_a, ids_b = torch.tensor([[1, 2, 3, 9, 9]]), torch.tensor([[1, 2, 4, 9, 9]])
    a = torch.ones(1, 5, 2)
    b = a.clone()
    b[:, 2] = -1  # the token that differs
    b[:, 4] = 50  # padding, which does not count
    distance = relative_distance(a, b, ids_a, ids_b, torch.tensor([3]))
    assert distance.item() == pytest.approx((8 / 4) ** 0.5)


def test_the_learning_rate_warms_up_and_decays():
    assert learning_rate(1.0, 0, 0.0) == pytest.approx(0.01)
    assert learning_rate(1.0, 500, 0.0) == pytest.approx(1.0)
    assert learning_rate(1.0, 500, 0.5) == pytest.approx(0.505)
    assert learning_rate(1.0, 500, 1.0) == learning_rate(1.0, 500, 7.0) == pytest.approx(0.01)


class Line(Stage):
    """Learns y = 2x from noise."""

    name = "line"
    learning_rate = 0.1
    batch = 8

    def __init__(self):
        self.modules = nn.ModuleDict({"line": nn.Linear(1, 1)})

    def loss(self, batch, generator):
        x = torch.randn(batch, 1, generator=generator)
        return (self.modules["line"](x).float() - 2 * x).square().mean(), {"twice": 2.0}

    @staticmethod
    def read(weights):
        return nn.ModuleDict({"line": nn.Linear(1, 1)})

    def samples(self, path):
        path.write_text(str(self.modules["line"].weight.item()))

    def export(self, weights):
        weights.write_text(str(self.modules["line"].weight.item()))


def test_two_workers_train_and_go_on_where_they_stopped(tmp_path):
    once = partial(train, Line, (), runs=tmp_path, weights=tmp_path / "exported", workers=2)
    once(hours=3 / 3600, resume=False)
    stopped_at = float((tmp_path / "exported").read_text())
    first = [json.loads(line) for line in (tmp_path / "line.jsonl").read_text().splitlines()]
    assert first[0]["step"] == 20 and first[0]["pictures"] == 160 and first[0]["twice"] == 2.0
    with pytest.raises(InputError, match="pass --resume"):
        once(hours=3 / 3600, resume=False)
    once(hours=6 / 3600, resume=True)
    steps = [json.loads(line)["step"] for line in (tmp_path / "line.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] > first[-1]["step"]
    assert abs(stopped_at - 2) < 1 and abs(float((tmp_path / "exported").read_text()) - 2) < 1


def test_a_resumed_run_has_all_that_was_saved(tmp_path):
    once = partial(train, Line, (), runs=tmp_path, weights=tmp_path / "exported", workers=2, hours=1 / 3600)
    once(resume=False)
    saved = torch.load(tmp_path / "line.pt", weights_only=True)
    assert saved["optimizer"]["state"][0]["exp_avg"].any()
    assert saved["average"]["line.weight"] != saved["modules"]["line.weight"]
    once(resume=True)  # its time is up: not a step more
    again = torch.load(tmp_path / "line.pt", weights_only=True)
    assert again.pop("progress") == saved.pop("progress")
    torch.testing.assert_close(again, saved, rtol=0, atol=0)


def test_workers_average_their_gradients():
    barrier, queue, found = threading.Barrier(2), SimpleQueue(), {}

    def work(rank: int) -> None:
        mean = MeanOverWorkers(rank, 2, 3 + 1 + 1, barrier, queue)
        weight, unused = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(1))
        weight.grad = torch.tensor([1.0, 2.0, 3.0]) * (1 + 2 * rank)
        found[rank] = _average_gradients([weight, unused], 10.0 * rank, mean), weight.grad, unused.grad

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    for seconds, gradient, unused in found.values():
        assert seconds == 5.0 and gradient.tolist() == [2.0, 4.0, 6.0] and unused.tolist() == [0.0]


def test_what_cannot_be_trained_is_refused_at_once(tmp_path):
    check = partial(check_run, Line, tmp_path, hours=1.0, workers=2, resume=False, start=None)
    check()
    for workers in (0, 3, 16):
        with pytest.raises(InputError, match=f"share a batch of 8 evenly, got {workers}"):
            check(workers=workers)
    for hours in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="hours must be above 0"):
            check(hours=hours)
    with pytest.raises(InputError, match=r"there is no .*line\.pt to resume"):
        check(resume=True)
    with pytest.raises(InputError, match=r"there is no folder .*nowhere"):
        check(start=tmp_path / "nowhere")
    with pytest.raises(InputError, match="either resumed or begun"):
        check(resume=True, start=tmp_path)
    with pytest.raises(InputError, match=r"there is no vae\.safetensors in .* to begin with"):
        check_run(STAGES["vae"], tmp_path, hours=1.0, workers=2, resume=False, start=tmp_path)
    with pytest.raises(InputError, match="the unet is trained after the vae"):
        prepare("unet", tmp_path, tmp_path / "weights", scenes=1)


def test_training_begins_with_nothing(tmp_path):
    prepare("clip", tmp_path / "runs", tmp_path / "weights", scenes=1)
    assert (tmp_path / "weights" / "merges.txt").read_bytes() == (MINIATURE_FOLDER / "merges.txt").read_bytes()
    assert read_config(tmp_path / "weights").unet == read_config(MINIATURE_FOLDER).unet
    STAGES["clip"](tmp_path / "runs", tmp_path / "weights", 1)


def test_a_stage_copies_what_it_lacks_and_spoils_nothing(tmp_path):
    weights = tmp_path / "weights"
    prepare("unet", tmp_path, weights, scenes=1, start=MINIATURE_FOLDER)
    copied = {path.name for path in weights.iterdir()}
    assert copied == {"config.json", "merges.txt", *(f"{part}.safetensors" for part in BUT_THE_UNET)}
    for name in copied:
        assert (weights / name).read_bytes() == (MINIATURE_FOLDER / name).read_bytes()
    for name in ("clip", "vae"):
        prepare(name, tmp_path, weights, scenes=1)
        with pytest.raises(InputError, match=f"holds a unet, which is of no use with a new {name}"):
            prepare(name, tmp_path, MINIATURE_FOLDER, scenes=1)


def test_a_run_does_not_begin_with_weights_of_other_sizes(tmp_path):
    (tmp_path / "vae.safetensors").write_bytes((MINIATURE_FOLDER / "unet.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"vae\.safetensors"):
        check_run(STAGES["vae"], tmp_path, hours=1.0, workers=2, resume=False, start=tmp_path)


def test_latents_are_of_one_vae(tmp_path):
    weights = tmp_path / "weights"
    shutil.copytree(MINIATURE_FOLDER, weights, ignore=shutil.ignore_patterns("examples"))
    scale, latents = training_latents(tmp_path, weights, 2)
    assert training_latents(tmp_path, weights, 2)[1].equal(latents)
    vae = load_part(lambda: VAE(MINIATURE.vae), weights / "vae.safetensors").requires_grad_(False)
    vae.quant_conv.weight *= 2
    save_part(vae, weights / "vae.safetensors")
    other_scale, _ = training_latents(tmp_path, weights, 2)
    assert other_scale != scale


@pytest.mark.parametrize("name", ["clip", "vae", "unet"])
def test_a_run_can_begin_with_the_shipped_weights(name, tmp_path):
    shutil.copy(MINIATURE_FOLDER / "config.json", tmp_path)
    stage = STAGES[name](tmp_path, MINIATURE_FOLDER, 1)
    stage.modules.load_state_dict(stage.read(MINIATURE_FOLDER).state_dict())
    stage.export(tmp_path)
    assert {f"{part}.safetensors" for part in stage.parts} == {path.name for path in tmp_path.glob("*.safetensors")}
    for part in stage.parts:
        exported, shipped = (folder / f"{part}.safetensors" for folder in (tmp_path, MINIATURE_FOLDER))
        assert exported.read_bytes() == shipped.read_bytes()


OFF = 0.5


@pytest.fixture
def almost(tmp_path):
    """The UNet's stage on an empty picture, so that noisy latents tell their noise, and a UNet that is wrong by OFF
    everywhere; what it was given."""
    stage = STAGES["unet"](tmp_path, MINIATURE_FOLDER, 1)
    stage.latents = torch.zeros_like(stage.latents)
    given = []

    def unet(noisy, timesteps, texts):
        noise = noisy / (1 - stage.alphas[timesteps]).sqrt()[:, None, None, None]
        given.append((noise, timesteps, texts))
        return noise + OFF

    stage.unet = unet
    return stage, given


def test_the_unet_learns_to_name_the_noise_weighted_by_its_amount(almost):
    stage, given = almost
    loss, figures = stage.loss(64, torch.Generator().manual_seed(0))
    alphas = stage.alphas[given[0][1]].double()
    weights = [min(1, 5 / ratio) if ratio > 1 else ratio**-0.5 for ratio in (alphas / (1 - alphas)).tolist()]
    assert loss.item() == pytest.approx(OFF**2 * np.mean(weights), rel=1e-3)
    assert min(weights) < 0.5 and max(weights) > 5
    assert figures["error"] == pytest.approx(OFF**2, rel=1e-3)


def test_the_noise_is_independent_of_the_picture(tmp_path):
    stage = STAGES["unet"](tmp_path, MINIATURE_FOLDER, 2)
    stage.alphas = torch.full_like(stage.alphas, 0.5)
    noise = []

    def unet(noisy, timesteps, texts):
        shown = torch.stack([(noisy - latents.float() * 0.5**0.5) / 0.5**0.5 for latents in stage.latents])
        noise.append(shown.flatten(2))
        return noisy

    stage.unet = unet
    stage.loss(2000, torch.Generator().manual_seed(0))
    which = noise[0].square().mean(-1).argmin(0)  # the picture that, taken away, leaves the least
    left = noise[0].gather(0, which[None, :, None].expand(1, -1, noise[0].shape[2]))[0]
    for picture in (0, 1):
        mean = left[which == picture].mean(0)
        assert 800 < (which == picture).sum() < 1200
        assert mean.square().mean().item() == pytest.approx(1 / (which == picture).sum().item(), rel=0.2)


def test_many_captions_are_wrong_partial_or_empty(tmp_path):
    stage = STAGES["unet"](tmp_path, MINIATURE_FOLDER, 200)
    count = 4000
    texts = stage._captions(torch.full((count,), 5), torch.Generator().manual_seed(0))

    def share(row: int) -> float:
        return (texts == stage.texts[row].float()).flatten(1).all(1).float().mean().item()

    right = [stage.row[data.attributes(stage.scenes[5], omit)] for omit in data.OMISSIONS]
    assert share(0) == pytest.approx(0.1, abs=0.02)
    assert sum(map(share, right)) == pytest.approx(0.9 * 0.7, abs=0.04)
    assert share(right[0]) == pytest.approx(0.7 * 0.9 * 0.7, abs=0.04)


def test_an_embedding_may_be_of_any_size():
    """What the text encoder returns a tenth of, the UNet's keys and values take ten times."""
    torch.manual_seed(0)
    encoder, unet = TextEncoder(MINIATURE.text_encoder), UNet(MINIATURE.unet)
    ids, noisy, timestep = torch.arange(77)[None], torch.randn(1, 4, 16, 16), torch.tensor(500)
    with torch.no_grad():
        embedding = encoder(ids)
        before = unet(noisy, timestep, embedding)
        scale_embedding(encoder, 0.1)
        train_unet.scale_context(unet, 10)
        smaller = encoder(ids)
        after = unet(noisy, timestep, smaller)
    torch.testing.assert_close(10 * smaller, embedding)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_the_shipped_pair_names_what_it_sees(editor):
    tower = load_image_encoder()
    scenes = [Scene.random(seed) for seed in HELD_OUT_SEEDS[:6]]
    right = [named for scene in scenes for named in named_rightly(editor, tower, scene, render(scene)).values()]
    assert np.mean(right) > 0.9
