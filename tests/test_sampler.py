"""The schedule, DDIM both ways, and which rows a step needs."""

import random

import published
import pytest
import torch
from runs import PROMPT, drain, sharpened

from minibaret.control import Layer, Take
from minibaret.pipeline import StableDiffusion
from minibaret.sampler import Branch, Schedule, cumulative_alphas, guide, invert, plan_rows, sample

ANCHORS = {
    0: 0.9991500000, 1: 0.9982960278, 21: 0.9803807481, 481: 0.3022956610,
    501: 0.2749990669, 961: 0.0072817271, 981: 0.0057755001, 999: 0.0046600985,
}  # fmt: skip


# The schedule


def test_cumulative_alphas_are_stable_diffusions():
    alphas = cumulative_alphas()
    assert alphas.dtype == torch.float32 and len(alphas) == 1000
    for timestep, value in ANCHORS.items():
        assert alphas[timestep].item() == pytest.approx(value, rel=2.1e-6)


def test_timesteps_lead_by_one_and_the_last_step_ends_at_the_first_alpha():
    schedule = Schedule(50)
    assert schedule.timesteps == list(range(981, 0, -20))
    assert Schedule(30).timesteps[0] == 29 * 33 + 1 and len(Schedule(30).timesteps) == 30
    assert schedule.alphas(1) == pytest.approx((ANCHORS[1], ANCHORS[0]), rel=2.1e-6)
    assert schedule.alphas(481) == pytest.approx((ANCHORS[481], cumulative_alphas()[461].item()), rel=2.1e-6)


def test_the_noise_term_is_kept_at_the_last_step():
    latents, noise = torch.zeros(1, 4, 2, 2), torch.ones(1, 4, 2, 2)
    a, b = ANCHORS[1], ANCHORS[0]
    wanted = -((b * (1 - a) / a) ** 0.5) + (1 - b) ** 0.5
    assert torch.allclose(Schedule(50).step(latents, noise, 1), torch.full_like(latents, wanted), atol=1e-6)


@pytest.mark.parametrize("steps", [50, 30, 7])
def test_a_step_and_its_inverse_undo_each_other(steps):
    schedule = Schedule(steps)
    start = latents = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    noises = []
    for timestep in reversed(schedule.timesteps):
        noises.append(0.3 * latents + 0.01 * timestep / 1000)
        latents = schedule.inverse_step(latents, noises[-1], timestep)
    for timestep in schedule.timesteps:
        latents = schedule.step(latents, noises.pop(), timestep)
    assert torch.allclose(latents, start, atol=1e-9)


def test_noise_is_added_as_the_forward_process_does():
    latents, noise = torch.randn(2, 1, 4, 8, 8, dtype=torch.float64)
    for timestep in (1, 481, 981):
        found = Schedule(50).add_noise(latents, noise, timestep)
        wanted = ANCHORS[timestep] ** 0.5 * latents + (1 - ANCHORS[timestep]) ** 0.5 * noise
        assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5)
        assert torch.allclose(published.ddim(latents, noise, timestep, 0), Schedule(1).step(latents, noise, timestep))


@pytest.mark.parametrize("steps", [0, 1000, -3])
def test_impossible_steps_are_refused(steps):
    with pytest.raises(ValueError, match="between 1 and 999"):
        Schedule(steps)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (400, "400 steps begin at timestep 799 of 999, not at noise; 333 or 500 steps do"),
        (501, "501 steps begin at timestep 501 of 999, not at noise; 500 or 999 steps do"),
        *((steps, None) for steps in (1, 3, 7, 10, 20, 30, 50, 100, 333, 500, 999)),
    ],
)
def test_a_count_that_does_not_begin_at_noise_is_said_with_near_ones_that_do(steps, said):
    assert Schedule(steps).warning() == said


def test_the_counts_that_a_warning_names_need_none():
    for steps in range(1, 1000):
        said = Schedule(steps).warning()
        if said:
            near = [int(word) for word in said.replace(";", "").split() if word.isdigit()][-2:]
            assert near[0] < steps < near[1] and not any(Schedule(count).warning() for count in near), said


# DDIM inversion


@pytest.fixture
def sd(small) -> StableDiffusion:
    sharpened(small.model.unet)
    return small.sd


def test_inversion_is_the_published_one_and_goes_on_where_it_was(sd, within):
    start, context = torch.randn(1, 4, 8, 8), sd.embed(PROMPT)
    exact = published.invert(sd.unet, start, context, 5)
    trajectory = [start]
    steps, _ = drain(invert(sd, trajectory, context, Schedule(5), count=2))
    assert [(step.stage, step.index, step.total) for step in steps] == [("inversion", 0, 2), ("inversion", 1, 2)]
    steps, _ = drain(invert(sd, trajectory, context, Schedule(5)))
    assert [step.index for step in steps] == [2, 3, 4] and len(trajectory) == 6
    error = max((ours - theirs).norm() / theirs.norm() for ours, theirs in zip(trajectory, exact))
    within("DDIM inversion, 5 steps, against the plain loop", error.item(), 1e-5)
    assert not any(latents.requires_grad for latents in trajectory)


# Sampling


def test_branches_are_guided_each_its_own_way(sd, one_thread):
    """One with guidance, one with an embedding for each step, one without guidance: each is as if it were alone."""
    contexts = [sd.embed(f"a {colour} dog") for colour in ("brown", "black", "white")]
    null, (a, b, c) = sd.embed(""), torch.randn(3, 1, 4, 8, 8)
    branches = [Branch("a", a, sd.embed(PROMPT), null), Branch("b", b, contexts, contexts[::-1]), Branch("c", c, null)]
    steps, found = drain(sample(sd, branches, Schedule(3), 2.5, wanted=("b", "a", "c")))
    assert [(step.stage, step.index, step.total) for step in steps] == [("edit", i, 3) for i in range(3)]
    assert torch.equal(steps[-1].latents, found["b"])  # the first that is wanted
    for i, t in enumerate(published.timesteps(3)):
        with torch.no_grad():
            uncond = published.predict(sd.unet, a, t, null)
            noise = uncond + 2.5 * (published.predict(sd.unet, a, t, sd.embed(PROMPT)) - uncond)
            a = published.ddim(a, noise, t, t - 333)
            uncond = published.predict(sd.unet, b, t, contexts[2 - i])
            noise = uncond + 2.5 * (published.predict(sd.unet, b, t, contexts[i]) - uncond)
            b = published.ddim(b, noise, t, t - 333)
            c = published.ddim(c, published.predict(sd.unet, c, t, null), t, t - 333)
    for name, latents in (("a", a), ("b", b), ("c", c)):
        assert torch.allclose(found[name], latents, rtol=0, atol=1e-4 * latents.std())


def test_the_last_steps_alone_and_latents_changed_between(sd):
    """As SDEdit begins, and DiffEdit puts back what is outside its mask."""
    start, seen = torch.randn(1, 4, 8, 8), []

    def after(step, latents):
        seen.append((step, latents["edit"]))
        return {"edit": torch.full_like(start, step)}

    branches = [Branch("edit", start, sd.embed(PROMPT), sd.embed(""))]
    steps, found = drain(sample(sd, branches, Schedule(5), 3.0, after=after, first=2))
    assert [(step.index, step.total) for step in steps] == [(0, 3), (1, 3), (2, 3)]
    assert [step for step, _ in seen] == [2, 3, 4] and torch.equal(found["edit"], torch.full_like(start, 4))
    for latents, (step, moved) in zip((start, torch.full_like(start, 2), torch.full_like(start, 3)), seen):
        t = published.timesteps(5)[step]
        with torch.no_grad():
            noise = guide(*(published.predict(sd.unet, latents, t, sd.embed(p)) for p in ("", PROMPT)), 3.0)
        assert torch.allclose(moved, published.ddim(latents, noise, t, t - 200), rtol=0, atol=1e-4 * moved.std())


def test_a_caller_may_stop(sd):
    work = sample(sd, [Branch("edit", torch.randn(1, 4, 8, 8), sd.embed(PROMPT))], Schedule(3), 1.0)
    next(work)
    work.close()
    assert sd.counts.row_forwards == 1 and sd.counts.gradient_passes == 0


# Which rows a step needs


START = torch.zeros(1, 4, 2, 2)
GUIDED = [Branch(name, START, START, START) for name in ("a", "b", "edit")]


def plan(takes: list[dict], wanted=("edit",), recorded=(), branches=GUIDED) -> list[str]:
    """The rows of each step as text: A is a's row with the prompt, a the other."""
    layer = Layer("self", 0, 4, "down", 0)
    plans = plan_rows(branches, [{layer: found} for found in takes], wanted, recorded)
    return ["".join(row.branch[0].upper() if row.conditional else row.branch[0] for row in rows) for rows in plans]


TAKE_A, TAKE_B = Take(q="a"), Take(k="b", v="b")


def test_a_branch_that_nobody_takes_from_any_more_leaves():
    assert plan([{}, {}]) == ["eE", "eE"]
    assert plan([{"edit": TAKE_A}, {"edit": TAKE_A}, {}]) == ["aAeE", "aAeE", "eE"]
    assert plan([{"edit": TAKE_A}, {}], wanted=("edit", "b")) == ["aAbBeE", "bBeE"]


def test_a_branch_that_is_taken_from_later_is_sampled_until_then():
    assert plan([{}, {"edit": TAKE_B}, {}]) == ["bBeE", "bBeE", "eE"]
    assert plan([{"b": TAKE_A}, {"edit": TAKE_B}, {}]) == ["aAbBeE", "bBeE", "eE"]  # through another
    assert plan([{"edit": TAKE_B}, {"b": TAKE_A}, {}]) == ["bBeE", "eE", "eE"]  # b is gone when it would take
    assert plan([{"edit": TAKE_B, "b": TAKE_A}]) == ["aAbBeE"]


def test_a_sum_needs_all_that_it_takes_from():
    assert plan([{"edit": [TAKE_A, TAKE_B]}, {"edit": [Take(), Take(q="b")]}]) == ["aAbBeE", "bBeE"]


def test_of_a_replayed_branch_only_the_rows_that_are_taken_from_are_there():
    replayed = [Branch("a", START, START, START, replay=[START] * 9), *GUIDED[1:]]
    both = Take(q="a", rows="both")
    assert plan([{}, {"edit": TAKE_A}, {"edit": both}, {}], branches=replayed) == ["eE", "AeE", "aAeE", "eE"]
    assert plan([{"edit": TAKE_A}], wanted=("edit", "a"), branches=replayed) == ["AeE"]
    assert plan([{}, {}], recorded=("a", "b"), branches=replayed) == ["AbBeE", "AbBeE"]
    assert plan([{"a": TAKE_B, "edit": TAKE_A}, {"a": TAKE_B}], branches=replayed) == ["AbBeE", "eE"]


def test_a_branch_without_guidance_has_one_row():
    lone = [Branch("a", START, START), *GUIDED[1:]]
    assert plan([{"edit": Take(q="a", rows="both")}, {}], branches=lone) == ["AeE", "eE"]


@pytest.mark.parametrize("seed", range(6))
def test_rows_that_leave_change_nothing(sd, seed):
    """Controls drawn at random: the edit is the same where every branch is wanted to the end."""
    draw = random.Random(seed)
    names, steps = ("a", "b", "edit"), 4
    null, starts = sd.embed(""), torch.randn(3, 1, 4, 8, 8)
    prompts = [sd.embed(f"a {colour} dog") for colour in ("brown", "black", "white")]
    branches = [Branch(*three, null) for three in zip(names, starts, prompts)]
    known = draw.choice([None, [*starts, starts[0]]])
    branches[0] = Branch("a", starts[0], prompts[0], draw.choice([None, null]), replay=known)
    drawn: dict = {}

    def take(kind: str) -> Take:
        q, k, v = (draw.choice([None, *names]) for _ in range(3))
        words = torch.rand(77, 77) if kind == "cross" and draw.random() < 0.3 else None
        return Take(q, k, v, words, draw.choice(["cond", "both"]))

    def control(step, layer):
        if layer.kind == "features":
            return {}
        key = step, layer
        if key not in drawn:
            takes = [take(layer.kind) for _ in range(draw.choice([1, 1, 2]))]
            drawn[key] = {draw.choice(names): takes} if draw.random() < 0.5 / (1 + step) else {}
        return drawn[key]

    _, some = drain(sample(sd, branches, Schedule(steps), 2.0, control))
    fewer = sd.counts.row_forwards
    _, everything = drain(sample(sd, branches, Schedule(steps), 2.0, control, wanted=("edit", "a", "b")))
    assert (some["edit"] - everything["edit"]).abs().max() < 1e-4 * everything["edit"].std()
    assert 2 * steps <= fewer <= sd.counts.row_forwards - fewer


def test_a_unet_that_cannot_be_compiled_runs_as_it_is(small, picture):
    def broken(*_):
        raise RuntimeError("no such backend")

    plain = small.edit(picture, "a cat", "sdedit", steps=2)
    small.model.unet.forward = broken
    with pytest.warns(UserWarning, match="runs uncompiled, since torch.compile failed: .*no such backend"):
        again = small.edit(picture, "a cat", "sdedit", steps=2)
    assert torch.equal(again.latents["edit"], plain.latents["edit"]) and "warm-up" in again.seconds


def test_warming_up_runs_every_layer_with_a_shared_map_and_counts_for_nothing(small, monkeypatch):
    from minibaret.models import unet as module

    shared, attention = [], module.attention
    monkeypatch.setattr(
        module, "attention", lambda q, k, v, takes, *rest: shared.append(takes) or attention(q, k, v, takes, *rest)
    )
    assert not small.sd.warm_up((1, 4, 4, 4)) and not shared  # neither a GPU nor compiled
    small.model.unet.forward = small.model.unet.forward  # as `load` compiles it
    assert small.sd.warm_up((1, 4, 4, 4))
    del small.model.unet.forward
    layers = small.sd.unet.layers(4, 4)
    assert len(shared) == sum(layer.kind != "features" for layer in layers)
    assert all(len({take[:2] for (take,) in takes}) == 1 for takes in shared)
    assert small.sd.counts.row_forwards == 0
