"""BARET on a tiny UNet with random weights: what must hold exactly, whatever the weights are."""

import dataclasses

import pytest
import torch

from minibaret import balanced_attention as bam
from minibaret import baret, transition
from minibaret.inversion import TunedStep, ddim_invert, tune_text
from minibaret.models import unet as unet_module
from minibaret.models.injection import Injection
from minibaret.prediction import guide, predict
from minibaret.schedule import Schedule
from minibaret.settings import Settings

SHORT = Settings(steps=10, guidance=3.0, inner_steps=2, learning_rate=1e-2, tolerance=(0.0, 0.0))


def texts():
    return torch.randn(1, 5, 24), torch.randn(1, 5, 24)


def drain(generator):
    """All that a generator yields, and what it returns."""
    yielded = []
    while True:
        try:
            yielded.append(next(generator))
        except StopIteration as end:
            return yielded, end.value


def run(unet, settings, pictures=()):
    target, null = texts()
    latents = torch.randn(1, 4, 8, 8)
    steps, record = drain(baret.run(unet, latents, target, null, settings, pictures))
    return target, null, steps, record


# Target-text inversion


def test_the_gradient_reaches_the_embedding_and_no_weight(unet):
    unet.requires_grad_(True)  # even where a caller forgot to freeze them
    target, null = texts()
    trajectory = [torch.randn(1, 4, 8, 8), *ddim_invert(unet, torch.randn(1, 4, 8, 8), target, Schedule(10))]
    tuned = list(tune_text(unet, trajectory, target, null, Schedule(10), SHORT))
    assert all(parameter.grad is None for parameter in unet.parameters())
    assert all((step.embedding - target).abs().amax(-1).min() > 0 for step in tuned)  # every token moved
    assert target.grad is None and not tuned[0].embedding.requires_grad


def test_tuning_lowers_the_loss_and_stays_near_the_trajectory(unet):
    target, null = texts()
    start = torch.randn(1, 4, 8, 8)
    trajectory = [start, *ddim_invert(unet, start, target, Schedule(10))]
    tuned = list(tune_text(unet, trajectory, target, null, Schedule(10), dataclasses.replace(SHORT, inner_steps=20)))
    untuned = list(tune_text(unet, trajectory, target, null, Schedule(10), dataclasses.replace(SHORT, inner_steps=0)))
    assert sum(step.losses[-1] < step.losses[0] for step in tuned) >= 8
    distance = [(steps[-1].latents - start).square().mean().item() for steps in (tuned, untuned)]
    assert distance[0] < 0.5 * distance[1]


def test_tuning_stops_at_the_tolerance_before_it_steps(unet):
    target, null = texts()
    start = torch.randn(1, 4, 8, 8)
    trajectory = [start, *ddim_invert(unet, start, target, Schedule(10))]
    loose = dataclasses.replace(SHORT, tolerance=(1e6, 0.0))
    for step in tune_text(unet, trajectory, target, null, Schedule(10), loose):
        assert step.iterations == 0 and torch.equal(step.embedding, target)
    thresholds = dataclasses.replace(SHORT, tolerance=(1e-4, 1e-4), inner_steps=50)
    for index, step in enumerate(tune_text(unet, trajectory, target, null, Schedule(10), thresholds)):
        assert all(loss >= 1e-4 + index * 1e-4 for loss in step.losses[:-1])
        assert step.losses[-1] < 1e-4 + index * 1e-4 or step.iterations == 50


def test_tuning_is_the_published_loop(unet):
    """Algorithm 1 written out plainly: nothing reused, everything recomputed."""
    target, null = texts()
    schedule = Schedule(4)
    settings = dataclasses.replace(SHORT, steps=4, tolerance=(2e-4, 1e-4), inner_steps=3)
    start = torch.randn(1, 4, 8, 8)
    trajectory = [start, *ddim_invert(unet, start, target, schedule)]
    latents, embedding = trajectory[-1], target.clone()
    tuned = list(tune_text(unet, trajectory, target, null, schedule, settings))
    for i, t in enumerate(schedule.timesteps):
        embedding = embedding.detach().requires_grad_()
        adam = torch.optim.Adam([embedding], lr=settings.learning_rate)

        def forward(e, z=latents, t=t):
            noise = predict(unet, torch.cat([z, z]), t, torch.cat([null, e]))
            return schedule.step(z, guide(noise[:1], noise[1:], settings.guidance), t)

        for _ in range(settings.inner_steps):
            loss = (forward(embedding) - trajectory[3 - i]).square().mean()
            if loss.item() < settings.tolerance[0] + i * settings.tolerance[1]:
                break
            adam.zero_grad()
            loss.backward()
            adam.step()
        latents = forward(embedding).detach()
        assert torch.allclose(tuned[i].embedding, embedding, atol=1e-4)
        assert torch.allclose(tuned[i].latents, latents, atol=1e-4)


# Progressive transition


def test_eta_has_both_ends_and_is_linear():
    etas = transition.etas(Settings())
    assert etas[0] == 0.8 and etas[-1] == pytest.approx(0.1) and len(etas) == 50
    assert etas[1] - etas[0] == pytest.approx(-0.7 / 49) == pytest.approx(etas[40] - etas[39])
    assert transition.etas(Settings(rigid=True)) == [1.0] * 50
    assert transition.etas(Settings(steps=1)) == [0.8]


def test_interpolation_goes_from_the_target_to_the_tuned_text():
    tuned, target = texts()
    assert torch.equal(transition.interpolate(tuned, target, 1.0), tuned)
    assert torch.equal(transition.interpolate(tuned, target, 0.0), target)
    assert torch.allclose(transition.interpolate(tuned, target, 0.25), target + 0.25 * (tuned - target))


# Balanced attention


def test_without_injection_the_edit_is_plain_guided_sampling_bit_for_bit(unet):
    settings = dataclasses.replace(SHORT, self_steps=0.0, cross_steps=0.0)
    target, null, _, record = run(unet, settings)
    latents = record.trajectory[-1]
    schedule = Schedule(settings.steps)
    with torch.no_grad():
        for timestep in schedule.timesteps:
            noise = unet(torch.cat([latents] * 2), torch.tensor(timestep), torch.cat([null, target]))
            latents = schedule.step(latents, noise[:1] + settings.guidance * (noise[1:] - noise[:1]), timestep)
    assert torch.equal(record.latents["edit"], latents)


def test_injecting_a_row_from_itself_changes_nothing(unet):
    latents, context = torch.randn(3, 4, 8, 8), torch.randn(3, 5, 24)
    plain = unet(latents, torch.tensor(7), context)
    injected = unet(latents, torch.tensor(7), context, Injection((0, 1, 2), (0, 1, 2)))
    assert torch.equal(plain, injected)


@pytest.mark.parametrize("guidance_rows", ["cond", "both"])
def test_injection_equals_replacing_the_maps(unet, monkeypatch, guidance_rows):
    """Prompt-to-prompt's way: store every row's softmax maps, then put the source's in the place of the edit's."""
    settings = dataclasses.replace(SHORT, rows=guidance_rows)
    rows = bam.all_rows(0, settings)
    injection = bam.injection(rows, 0, settings)
    assert injection.self_source == ((0, 1, 2, 3, 0, 1) if guidance_rows == "both" else (0, 1, 2, 3, 4, 1))
    assert injection.cross_source == ((0, 1, 2, 3, 2, 3) if guidance_rows == "both" else (0, 1, 2, 3, 4, 3))
    latents, context = torch.randn(6, 4, 8, 8), torch.randn(6, 5, 24)
    injected = unet(latents, torch.tensor(401), context, injection)

    stored = []

    def eager(q, k, v, source, implementation):
        assert source is None
        maps = (torch.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5).softmax(-1)
        if replay:
            is_self = q.shape[1] == k.shape[1]
            maps = stored.pop(0)[list(injection.self_source if is_self else injection.cross_source)]
        else:
            stored.append(maps)
        return torch.einsum("bhnm,bmhd->bnhd", maps, v)

    monkeypatch.setattr(unet_module, "attention", eager)
    replay = False
    plain = unet(latents, torch.tensor(401), context)
    replay = True
    replaced = unet(latents, torch.tensor(401), context)
    assert torch.allclose(injected, replaced, atol=1e-5)
    assert (injected[5] - plain[5]).abs().max() > 1e-3  # the edit did change
    assert torch.allclose(injected[:4], plain[:4], atol=1e-5)  # and nobody else


@pytest.mark.parametrize("rigid", [False, True])
@pytest.mark.parametrize("guidance_rows", ["cond", "both"])
def test_rows_that_retire_leave_the_edit_as_the_naive_six_rows_have_it(unet, rigid, guidance_rows):
    settings = dataclasses.replace(SHORT, rigid=rigid, rows=guidance_rows)
    target, null, _, record = run(unet, settings, pictures=("transition",))
    naive, _ = drain(baret.edit(unet, record, target, null, settings, rows_at=bam.all_rows))
    scale = naive[-1]["edit"].std()
    assert (naive[-1]["edit"] - record.latents["edit"]).abs().max() < 1e-4 * scale
    if not rigid:
        assert (naive[-1]["transition"] - record.latents["transition"]).abs().max() < 1e-4 * scale


def test_row_forwards_of_fifty_steps():
    def count(settings, pictures=()):
        return sum(len(bam.rows_at(step, settings, pictures)) for step in range(settings.steps))

    assert count(Settings()) == 175  # of 300
    assert count(Settings(rigid=True)) == 130
    assert count(Settings(), ("transition",)) == 215
    assert count(Settings(rows="both")) == 190
    assert count(Settings(self_steps=0.0, cross_steps=0.0)) == 100


def test_the_replayed_reconstruction_is_the_one_that_would_be_stepped(unet):
    """Guided sampling with the tuned texts retraces Z_rec."""
    _, null, _, record = run(unet, SHORT)
    schedule, latents = Schedule(SHORT.steps), record.trajectory[-1]
    with torch.no_grad():
        for timestep, tuned in zip(schedule.timesteps, record.tuned):
            noise = predict(unet, torch.cat([latents] * 2), timestep, torch.cat([null, tuned.embedding]))
            latents = schedule.step(latents, guide(noise[:1], noise[1:], SHORT.guidance), timestep)
            assert torch.allclose(latents, tuned.latents, atol=1e-3)


# The run


def test_every_step_is_reported_and_a_caller_may_stop(unet):
    _, _, steps, record = run(unet, SHORT)
    assert [step.stage for step in steps] == ["inversion"] * 10 + ["target-text inversion"] * 10 + ["edit"] * 10
    assert [step.index for step in steps] == list(range(10)) * 3
    assert len(record.trajectory) == 11 and record.iterations == [2] * 10
    assert all(isinstance(tuned, TunedStep) and len(tuned.losses) == 3 for tuned in record.tuned)
    work = baret.run(unet, torch.randn(1, 4, 8, 8), *texts(), SHORT)
    next(work)
    work.close()


def test_the_inversion_text_is_the_targets_or_empty(unet):
    target, null = texts()
    start = torch.randn(1, 4, 8, 8)
    for name, text in (("target", target), ("null", null)):
        settings = dataclasses.replace(SHORT, inversion_text=name, inner_steps=0)
        _, record = drain(baret.run(unet, start, target, null, settings))
        assert torch.equal(record.trajectory[-1], list(ddim_invert(unet, start, text, Schedule(10)))[-1])
