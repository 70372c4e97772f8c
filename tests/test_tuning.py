"""Target-text and null-text inversion against their published loops, and what the tuning does not do."""

import copy

import published
import pytest
import torch
from runs import PROMPT, drain
from torch.utils._python_dispatch import TorchDispatchMode

import minibaret
from minibaret.adam import Adam
from minibaret.bench.common import peak_bytes
from minibaret.methods import METHODS, Job
from minibaret.methods.baret import BaretKnobs
from minibaret.pipeline import StableDiffusion
from minibaret.sampler import Branch, Schedule, invert, sample
from minibaret.tuning import Tuned, adam, signs, tune

STEPS = 4
FIRM = {"inner_steps": 2, "solver": adam(lambda i: 1e-2), "threshold": lambda i: 0.0}


@pytest.fixture
def sd(small) -> StableDiffusion:
    return small.sd


def begin(sd, size: int = 8) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """A trajectory with the prompt, the prompt's embedding, the empty one."""
    torch.manual_seed(1)
    trajectory, target = [torch.randn(1, 4, size, size)], sd.embed(PROMPT)
    drain(invert(sd, trajectory, target, Schedule(STEPS)))
    return trajectory, target, sd.embed("")


def run(sd, trajectory, target, null, **changes) -> list[Tuned]:
    tuned: list[Tuned] = []
    drain(tune(sd, tuned, trajectory, target, null, Schedule(STEPS), 3.0, **{**FIRM, **changes}))
    return tuned


# The published loops


def test_target_text_inversion_is_the_published_loop(sd, within):
    """Algorithm 1; one step meets its threshold on the way, one at once, two never."""
    start, threshold = begin(sd), [0.21, 0.0, 1e9, 0.0].__getitem__
    found = run(sd, *start, inner_steps=3, solver=adam(lambda i: 3e-2), threshold=threshold)
    wanted = published.target_text_inversion(sd.unet, *start, 3.0, 3, 3e-2, threshold)
    assert [step.iterations for step in found] == [2, 3, 0, 3]
    within("target-text inversion against the plain loop", error(found, wanted), 1e-4)


def test_null_text_inversion_is_the_published_loop(sd, within):
    """The empty embedding is tuned; a step whose loss, found before it, is low enough is the last one taken."""
    trajectory, prompt, null = begin(sd)
    rate, threshold = lambda i: 3e-2 * (1 - i / 100), [0.21, 0.0, 1e9, 0.0].__getitem__
    how = {"unconditional": True, "inner_steps": 4, "threshold": threshold}
    found = run(sd, trajectory, null, prompt, **how, solver=adam(rate))
    wanted = published.null_text_inversion(sd.unet, trajectory, prompt, null, 3.0, 4, rate, threshold)
    assert [step.iterations for step in found] == [taken for *_, taken in wanted] == [3, 4, 1, 4]
    within("null-text inversion against the plain loop", error(found, wanted), 1e-4)
    for (_, latents, losses), goal in zip(found, trajectory[-2::-1]):
        assert losses[-1].item() == pytest.approx((latents - goal).square().mean().item(), rel=1e-4)


def test_signs_are_steps_of_a_length_that_falls_within_a_time_step(sd, within):
    """A twentieth of the embedding's size, then half of that, along the signs of the mean squared error's gradient."""
    trajectory, target, null = begin(sd)
    found, e, z = run(sd, trajectory, target, null, inner_steps=2, solver=signs(0.05)), target, trajectory[-1]

    def arrive(e: torch.Tensor, z: torch.Tensor, t: int) -> torch.Tensor:
        null_noise, noise = (published.predict(sd.unet, z, t, context) for context in (null, e))
        return published.ddim(z, null_noise + 3.0 * (noise - null_noise), t, t - 1000 // STEPS)

    for index, t in enumerate(published.timesteps(STEPS)):
        for length in (0.05, 0.025):
            e = e.detach().requires_grad_()
            gradient = torch.autograd.grad((arrive(e, z, t) - trajectory[-2 - index]).square().mean(), e)[0]
            e = e.detach() - length * (e.detach() ** 2).mean().sqrt() * gradient.sign()
        z = arrive(e, z, t)
        within("signs: embedding", (found[index].embedding - e).norm() / e.norm(), 1e-4)
        within("signs: latents", (found[index].latents - z).norm() / z.norm(), 1e-4)


def error(found, wanted) -> float:
    """The largest of the embeddings' and latents', relative."""
    pairs = [(ours, theirs) for steps in zip(found, wanted) for ours, theirs in list(zip(*steps))[:2]]
    return max(((ours - theirs).norm() / theirs.norm()).item() for ours, theirs in pairs)


# What is tuned


@pytest.mark.parametrize("unconditional", [False, True])
def test_the_gradient_reaches_the_embedding_and_no_weight(sd, unconditional):
    sd.unet.requires_grad_(True)  # even where a caller forgot to freeze them
    trajectory, target, null = begin(sd)
    tuned = run(sd, trajectory, target, null, unconditional=unconditional)
    assert all(parameter.grad is None for parameter in sd.unet.parameters())
    assert all((step.embedding - target).abs().amax(-1).min() > 0 for step in tuned)  # every token moved
    assert target.grad is None and not any(x.requires_grad for step in tuned for x in step)


@pytest.mark.parametrize("unconditional", [False, True])
def test_tuning_lowers_the_loss_and_stays_near_the_trajectory(sd, unconditional):
    trajectory, target, null = begin(sd)
    pair = (null, target) if unconditional else (target, null)
    more = {"unconditional": unconditional, "solver": adam(lambda i: 3e-2)}
    tuned, untuned = (run(sd, trajectory, *pair, inner_steps=count, **more) for count in (20, 0))
    assert all(step.losses[-1] < step.losses[0] for step in tuned)
    far, farther = ((steps[-1].latents - trajectory[0]).square().mean() for steps in (tuned, untuned))
    assert far < 0.5 * farther


def test_tuning_stops_below_the_threshold_before_it_steps(sd):
    trajectory, target, null = begin(sd)
    for step in run(sd, trajectory, target, null, threshold=lambda i: 1e6):
        assert step.iterations == 0 and torch.equal(step.embedding, target)


def test_guided_sampling_with_what_was_tuned_leads_where_it_says(sd):
    trajectory, target, null = begin(sd)
    for unconditional in (False, True):
        pair = (null, target) if unconditional else (target, null)
        tuned = run(sd, trajectory, *pair, unconditional=unconditional)
        found = [step.embedding for step in tuned]
        branch = Branch("edit", trajectory[-1], *((target, found) if unconditional else (found, null)))
        steps, _ = drain(sample(sd, [branch], Schedule(STEPS), 3.0))
        for step, (_, latents, _) in zip(steps, tuned):
            assert torch.allclose(step.latents, latents, rtol=0, atol=1e-4 * latents.std())


def test_tuning_goes_on_after_what_was_tuned(sd, one_thread):
    start = begin(sd)
    whole = run(sd, *start)
    tuned = whole[:2]
    steps, _ = drain(tune(sd, tuned, *start, Schedule(STEPS), 3.0, stage="x", **FIRM))
    assert [(step.stage, step.index, step.total) for step in steps] == [("x", 2, STEPS), ("x", 3, STEPS)]
    assert all(torch.equal(a, b) for x, y in zip(tuned, whole) for a, b in zip(x, y))


def test_a_loss_that_is_no_number_is_said(sd):
    trajectory, target, null = begin(sd)
    for factor, found in ((1e30, "inf"), (float("nan"), "nan")):
        broken = [*(factor * latents for latents in trajectory[:-1]), trajectory[-1]]
        with pytest.raises(minibaret.InputError, match=rf"tuning needs a finite loss, got {found}: a smaller step or"):
            run(sd, broken, target, null)


# What it costs


def test_no_graph_outside_the_inner_loop(sd):
    start, graphs = begin(sd), []
    sd.unet.register_forward_hook(lambda unet, inputs, out: graphs.append(out.requires_grad))
    passes, rows = sd.counts.gradient_passes, sd.counts.row_forwards
    run(sd, *start, inner_steps=1)
    assert graphs == [False, True, False] * STEPS  # ε_null; with the embedding; the last, for the latents only
    assert sd.counts.gradient_passes - passes == STEPS and sd.counts.row_forwards - rows == 3 * STEPS
    graphs.clear()
    run(sd, *start, threshold=lambda i: 1e9)
    assert graphs == [False, True] * STEPS  # near enough: no second evaluation


class Waits(TorchDispatchMode):
    """Counts the numbers that are read out of tensors, and the lists of indices that are made tensors: for each, the
    CPU would wait for a GPU. Adam's count of its steps is left out: it is on the CPU wherever the embedding is."""

    operators = ("aten::_local_scalar_dense", "aten::index", "aten::index_put_", "aten::nonzero")

    def __enter__(self):
        self.count, self.in_adam, self.step = 0, False, Adam.step

        def step(adam: Adam) -> None:
            self.in_adam = True
            self.step(adam)
            self.in_adam = False

        Adam.step = step
        return super().__enter__()

    def __exit__(self, *raised):
        Adam.step = self.step
        return super().__exit__(*raised)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function._schema.name in self.operators and not self.in_adam
        return function(*args, **(kwargs or {}))


def test_only_the_loss_is_waited_for(sd):
    with Waits() as waits:
        assert torch.ones(2)[[0]].item() == 1 and waits.count == 2
    method, knobs = METHODS["baret"], BaretKnobs(steps=STEPS, inner_steps=1, tolerance=(0.0, 0.0))
    job = Job(torch.randn(1, 4, 8, 8), PROMPT)
    for prompt in (PROMPT, ""):
        sd.embed(prompt)
    with Waits() as waits:
        _, (_, tuned) = drain(method.invert(sd, job, knobs))
        assert waits.count == sum(len(step.losses) for step in tuned) == 2 * STEPS
    with Waits() as waits:
        drain(method.edit(sd, job, knobs))
        assert waits.count == 0


def test_checkpointing_finds_the_same_in_less_memory(sd):
    start, found, peaks = begin(sd, 16), [], []
    for on in (False, True):
        other = StableDiffusion(sd.model, minibaret.Savings(checkpointing=on))
        other.embed(PROMPT), other.embed("")
        peaks.append(peak_bytes(lambda other=other: found.append(run(other, *start)), torch.device("cpu")))
    assert peaks[1] < 0.7 * peaks[0]
    for plain, checkpointed in zip(*found):
        assert torch.allclose(plain.embedding, checkpointed.embedding, rtol=0, atol=1e-5)
        assert torch.allclose(plain.latents, checkpointed.latents, rtol=0, atol=1e-5)


# Half precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_tunes_the_same_embedding_in_float32(sd, dtype):
    """With the paper's learning rate, whose steps are lost where the embedding itself is of half precision, and a loss
    whose gradient is nothing in float16 unless it is scaled."""
    trajectory, target, null = begin(sd)
    near = [0.999 * latents + 0.001 * trajectory[0] for latents in trajectory]
    paper = {"inner_steps": 5, "solver": adam(lambda i: 1e-3)}
    whole = run(sd, near, target, null, **paper)
    sd.unet.to(dtype)
    half = run(sd, near, target, null, **paper)
    assert all(x.dtype == torch.float32 and x.isfinite().all() for step in half for x in step[:2])
    moved = [(steps[0].embedding - target).flatten() for steps in (whole, half)]
    assert torch.nn.functional.cosine_similarity(*moved, dim=0) > 0.9
    assert (whole[-1].latents - half[-1].latents).norm() < 0.05 * whole[-1].latents.norm()


def test_adam_is_pytorchs():
    ours, theirs = (torch.zeros(3, requires_grad=True) for _ in range(2))
    adam, optimizer = Adam([ours], lr=1e-2), torch.optim.Adam([theirs], lr=1e-2)
    for gradient in torch.randn(4, 3):
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        adam.step(), optimizer.step()
        assert torch.equal(ours, theirs) and ours.abs().min() > 0


def test_small_losses_have_a_gradient_in_float16(editor):
    """That of a mean squared error of 1e-5 is below what float16 can hold: on the miniature's own UNet."""
    gradients, schedule = [], Schedule(50)
    target, null, latents = editor.sd.embed(PROMPT), editor.sd.embed(""), torch.randn(1, 4, 16, 16)
    branch = Branch("edit", latents, target, null)
    goal = next(sample(editor.sd, [branch], schedule, 7.5)).latents + 3e-3 * torch.randn(1, 4, 16, 16)
    watch = {**FIRM, "inner_steps": 1, "solver": lambda e, index: lambda: gradients.append(e.grad.flatten())}
    for dtype in (torch.float32, torch.float16):
        sd, tuned = editor.sd.with_unet(copy.deepcopy(editor.model.unet).to(dtype)), []
        next(tune(sd, tuned, [latents, goal, latents], target, null, schedule, 7.5, **watch))
        assert tuned[0].losses[0] < 2e-5
    # 0.92, what float16's own rounding leaves at so small a difference; of the mean's gradient 0.10
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.85
