"""BARET against its paper written out plainly (published.py), on a UNet of random weights."""

import copy
import dataclasses

import published
import pytest
import torch
from runs import PROMPT, drain, sharpened

from minibaret.methods import METHODS, Job
from minibaret.methods.baret import BaretKnobs, etas
from minibaret.methods.common import interpolate
from minibaret.pipeline import StableDiffusion
from minibaret.sampler import Schedule, guide, invert

SHORT = BaretKnobs(steps=5, guidance=3.0, solver="adam", inner_steps=2, learning_rate=1e-2, tolerance=(0.0, 0.0))
PAPER = (0.8, 0.1), 0.3, 0.6  # η, τ_s, τ_c


@pytest.fixture
def sd(small) -> StableDiffusion:
    sharpened(small.model.unet)
    return small.sd


def run(sd, pictures=(), **changes):
    """The steps, the final latents by branch, the trajectory, and what was tuned."""
    torch.manual_seed(1)
    job = Job(torch.randn(1, 4, 8, 8), PROMPT, pictures=pictures)
    steps, found = drain(METHODS["baret"].edit(sd, job, dataclasses.replace(SHORT, **changes)))
    return steps, found, [z for (z,) in job.kept.items("trajectory")], job.kept.items("target embeddings")


def in_dtype(sd, dtype) -> tuple[StableDiffusion, torch.nn.Module]:
    """With the UNet in that dtype, and a UNet that computes exactly, in float64, with the same rounded weights."""
    low = copy.deepcopy(sd.unet).to(dtype)
    return sd.with_unet(low), copy.deepcopy(low).double()


def over(found: torch.Tensor, plain: torch.Tensor, exact: torch.Tensor) -> float:
    """How far `found` is from the exact result, as a multiple of how far plain arithmetic in its dtype is."""
    return ((found.double() - exact).norm() / (plain.double() - exact).norm()).item()


# The paper, written out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_whole_run_is_the_published_one(sd, within, dtype):
    """It errs by rounding at most twice as much as the published loop does in the same dtype."""
    low, exact_unet = in_dtype(sd, dtype)
    _, found, (start, *_), _ = run(low, pictures=("transition",))

    def published_run(unet, wide) -> dict[str, torch.Tensor]:
        z, target, null = (x.to(wide) for x in (start, sd.embed(PROMPT), sd.embed("")))
        trajectory = published.invert(unet, z, target, SHORT.steps)
        tuned = published.target_text_inversion(unet, trajectory, target, null, 3.0, 2, 1e-2, lambda i: 0.0)
        return published.edit(unet, trajectory[-1], [e for e, _ in tuned], target, null, 3.0, *PAPER)

    exact, plain = published_run(exact_unet, torch.float64), published_run(low.unet, torch.float32)
    ratio = max(over(found[name], plain[name], exact[name]) for name in ("edit", "transition", "reconstruction"))
    within(f"BARET, a whole run in {str(dtype)[6:]}: error over the plain loop's", ratio, 2.0)


@pytest.mark.parametrize(
    ("dtype", "rows", "rigid"),
    [
        (torch.float32, "cond", False),
        (torch.float32, "both", False),
        (torch.float32, "cond", True),
        (torch.float32, "both", True),
        (torch.bfloat16, "cond", False),
        (torch.float16, "both", False),
    ],
)
def test_an_edit_is_that_of_six_rows_whose_maps_are_replaced(sd, within, dtype, rows, rigid):
    """Rows that retire, a reconstruction that is replayed and maps that are never made change nothing but rounding."""
    low, exact_unet = in_dtype(sd, dtype)
    _, found, trajectory, tuned = run(low, ("transition",), rigid=rigid, rows=rows)

    def six_rows(unet, wide, tau_self=0.3, tau_cross=0.6) -> torch.Tensor:
        start, target, null, *embeddings = (
            x.to(wide) for x in (trajectory[-1], sd.embed(PROMPT), sd.embed(""), *(step.embedding for step in tuned))
        )
        eta = (1.0, 1.0) if rigid else (0.8, 0.1)
        return published.edit(unet, start, embeddings, target, null, 3.0, eta, tau_self, tau_cross, rows == "both")

    exact, plain = six_rows(exact_unet, torch.float64), six_rows(low.unet, torch.float32)
    ratio = max(over(found[name], plain[name], exact[name]) for name in ("edit", "transition"))
    kind = f"{str(dtype)[6:]}, {rows}{', rigid' * rigid}"
    within(f"BARET, edit in {kind}: error over six rows'", ratio, 2.0)
    if dtype == torch.float32:  # one step more of either kind would be seen
        for taus in ((0.5, 0.6), (0.3, 0.8)):
            assert over(six_rows(exact_unet, torch.float64, *taus)["edit"], plain["edit"], exact["edit"]) > 100


def test_maps_are_taken_at_the_steps_before_tau_times_their_count():
    """i < τ · T, in whole numbers: also where that is a half (0.5 · 5: steps 0, 1, 2) or rounds (0.07 · 100)."""
    for steps in (*range(1, 60), 100, 999):
        for percent in range(101):
            found = dataclasses.replace(SHORT, steps=steps).first(percent / 100)
            assert found == sum(100 * i < percent * steps for i in range(steps)), (steps, percent)


def test_without_control_the_edit_is_plain_guided_sampling_bit_for_bit(sd, one_thread):
    _, found, trajectory, _ = run(sd, self_steps=0.0, cross_steps=0.0)
    latents, schedule, context = trajectory[-1], Schedule(SHORT.steps), torch.cat([sd.embed(""), sd.embed(PROMPT)])
    with torch.no_grad():
        for timestep in schedule.timesteps:
            noise = sd.unet(torch.cat([latents] * 2), torch.tensor(timestep), context)
            latents = schedule.step(latents, noise[:1] + SHORT.guidance * (noise[1:] - noise[:1]), timestep)
    assert torch.equal(found["edit"], latents)


# Rows


@pytest.mark.parametrize(
    ("count", "pictures", "changes"),
    [
        (175, (), {}),  # of 300
        (215, ("transition",), {}),
        (175, ("reconstruction",), {}),  # known from the tuning
        (130, ("transition",), {"rigid": True}),
        (190, (), {"rows": "both"}),
        (100, (), {"self_steps": 0.0, "cross_steps": 0.0}),
    ],
)
def test_row_forwards_of_fifty_steps(sd, monkeypatch, count, pictures, changes):
    batches = []

    def eps(latents, timestep, context, control=None) -> torch.Tensor:
        batches.append(len(latents))
        return torch.zeros_like(latents)

    monkeypatch.setattr(sd, "eps", eps)
    steps, *_ = run(sd, pictures, steps=50, inner_steps=0, **changes)
    assert [step.stage for step in steps[-50:]] == ["edit"] * 50
    assert sum(batches[-50:]) == count and len(batches) == 50 + 2 * 50 + 50


def test_rows_that_take_project_neither_queries_nor_keys(sd):
    """The rows that each projection of a layer is given, step by step."""
    layers = [m for m in sd.unet.modules() if hasattr(m, "to_q")]
    counts: dict[str, int] = {}

    def count(name):
        return lambda layer, inputs: counts.__setitem__(name, counts.get(name, 0) + len(inputs[0]))

    for kind, those in (("self", layers[0::2]), ("cross", layers[1::2])):
        for layer in those:
            for name in ("to_q", "to_k", "to_v"):
                getattr(layer, name).register_forward_pre_hook(count(f"{kind} {name}"))
    found = []
    job = Job(torch.randn(1, 4, 8, 8), PROMPT)
    for step in METHODS["baret"].edit(sd, job, dataclasses.replace(SHORT, steps=4, self_steps=0.5, cross_steps=0.75)):
        if step.stage == "edit":
            found.append({name: rows * 2 / len(layers) for name, rows in counts.items()})
        counts.clear()
    rows = [5, 5, 4, 2]
    assert [step["self to_v"] for step in found] == [step["cross to_v"] for step in found] == rows
    assert [step["self to_q"] for step in found] == [step["self to_k"] for step in found] == [4, 4, 4, 2]
    assert [step["cross to_q"] for step in found] == [step["cross to_k"] for step in found] == [4, 4, 3, 2]


def test_the_replayed_reconstruction_is_the_one_that_would_be_stepped(sd):
    """Guided sampling with the tuned embeddings retraces Z_rec."""
    _, found, trajectory, tuned = run(sd)
    schedule, latents, null = Schedule(SHORT.steps), trajectory[-1], sd.embed("")
    for timestep, (embedding, kept, _) in zip(schedule.timesteps, tuned):
        with torch.no_grad():
            noise = sd.eps(torch.cat([latents] * 2), timestep, torch.cat([null, embedding]))
        latents = schedule.step(latents, guide(noise[:1], noise[1:], SHORT.guidance), timestep)
        assert torch.allclose(latents, kept, rtol=0, atol=1e-4 * kept.std())
    assert torch.equal(found["reconstruction"], tuned[-1].latents)


def test_the_transition_of_a_rigid_edit_is_the_reconstruction(sd):
    _, found, trajectory, _ = run(sd, ("transition",), rigid=True)
    assert torch.equal(found["transition"], found["reconstruction"])
    assert not torch.equal(found["transition"], trajectory[-1])  # the noise
    _, found, *_ = run(sd, ("transition",))
    assert not torch.equal(found["transition"], found["reconstruction"])


# Progressive transition


def test_eta_has_both_ends_and_is_linear():
    found = etas(BaretKnobs())
    assert found[0] == 0.8 and found[-1] == pytest.approx(0.1) and len(found) == 50
    assert found[1] - found[0] == pytest.approx(-0.7 / 49) == pytest.approx(found[40] - found[39])
    assert etas(BaretKnobs(rigid=True)) == [1.0] * 50
    assert etas(BaretKnobs(steps=1)) == [0.8]


def test_interpolation_goes_from_the_target_to_the_tuned_embedding():
    tuned, target = torch.randn(2, 1, 77, 24)
    assert torch.equal(interpolate(tuned, target, 1.0), tuned)
    assert torch.equal(interpolate(tuned, target, 0.0), target)
    assert torch.allclose(interpolate(tuned, target, 0.25), target + 0.25 * (tuned - target), atol=1e-6)


# The run


def test_every_step_is_reported_and_a_caller_may_stop(sd):
    steps, _, trajectory, tuned = run(sd)
    assert [step.stage for step in steps] == ["inversion"] * 5 + ["target-text inversion"] * 5 + ["edit"] * 5
    assert [step.index for step in steps] == list(range(5)) * 3 and {step.total for step in steps} == {5}
    assert len(trajectory) == 6 and [step.iterations for step in tuned] == [2] * 5
    assert [(step.loss, step.iterations) for step in steps[5:10]] == [(step.losses[-1], 2) for step in tuned]
    job = Job(torch.randn(1, 4, 8, 8), PROMPT)
    work = METHODS["baret"].edit(sd, job, SHORT)
    next(work), next(work)
    work.close()
    assert len(job.kept.items("trajectory")) == 3


@pytest.mark.parametrize(("name", "prompt"), [("target", PROMPT), ("null", "")])
def test_the_inversion_prompt_is_the_targets_or_empty(sd, name, prompt):
    _, _, found, _ = run(sd, inversion_prompt=name, inner_steps=0)
    trajectory = found[:1]
    drain(invert(sd, trajectory, sd.embed(prompt), Schedule(SHORT.steps)))
    assert torch.equal(found[-1], trajectory[-1])
