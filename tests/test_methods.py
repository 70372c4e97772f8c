"""Methods from outside: their knobs and what is said of wrong ones, presets, a method of one's own."""

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from runs import OTHER, PROMPT, QUICK

import minibaret
from minibaret import METHODS, InputError
from minibaret.methods import Job, Knobs, Method
from minibaret.methods.baret import BaretKnobs
from minibaret.methods.common import FAST, WANTED, fits, knob, trajectory
from minibaret.methods.fine_tuning import copy_to_tune
from minibaret.sampler import Branch, sample

# Knobs


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("steps", 0, "a whole number from 1 to 999"),
        ("steps", 1000, "a whole number from 1 to 999"),
        ("steps", 5.0, "a whole number from 1 to 999"),
        ("steps", True, "a whole number from 1 to 999"),
        ("steps", None, "a whole number from 1 to 999"),
        ("guidance", float("nan"), "a number from -1000 to 1000"),
        ("guidance", float("inf"), "a number from -1000 to 1000"),
        ("guidance", "7.5", "a number from -1000 to 1000"),
        ("inner_steps", -1, "a whole number, at least 0"),
        ("inner_steps", 2.5, "a whole number, at least 0"),
        ("learning_rate", 0.0, "a number above 0, at most 1000"),
        ("learning_rate", 1e38, "a number above 0, at most 1000"),
        ("self_steps", 1.1, "a number from 0 to 1"),
        ("cross_steps", -0.1, "a number from 0 to 1"),
        ("cross_steps", False, "a number from 0 to 1"),
        ("transition", (0.8, 1.1), "two numbers from 0 to 1"),
        ("transition", (0.8,), "two numbers from 0 to 1"),
        ("transition", 0.8, "two numbers from 0 to 1"),
        ("tolerance", (-1e-5, 0.0), "two numbers, at least 0"),
        ("tolerance", (1e-5, float("inf")), "two numbers, at least 0"),
        ("rigid", "no", "true or false"),
        ("rigid", 1, "true or false"),
        ("rows", "all", "one of cond, both"),
        ("inversion_prompt", "source", "one of target, null"),
    ],
)
def test_impossible_values_are_said(name, value, wanted):
    with pytest.raises(InputError) as refusal:
        BaretKnobs(**{name: value})
    assert str(refusal.value) == f"{name.replace('_', ' ')} must be {wanted}, got {value!r}"


def test_values_at_the_ends_are_possible():
    BaretKnobs(steps=1, guidance=0, inner_steps=0, self_steps=0, cross_steps=1, transition=[1, 0], tolerance=(0, 0))
    BaretKnobs(steps=999, guidance=-3.5, learning_rate=1e-30, rows="both", rigid=True)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("word", ["hat", "a hat"], ["", " ", 3, None]),
        ("weights", [(), (("hat", 2.0),), [["a hat", -1]]], ["hat", ("hat", 2.0), (("hat", "2"),), (("hat",),), 2]),
        (("a", "b"), ["a", "b"], ["c", "", None]),
    ],
)
def test_kinds_that_baret_has_no_knob_of(kind, good, bad):
    assert all(fits(kind, value) for value in good) and not any(fits(kind, value) for value in bad)


def test_every_knob_is_of_a_known_kind_and_helps():
    for method in METHODS.values():
        for entry in dataclasses.fields(method.knobs):
            kind = entry.metadata["kind"]
            assert kind in WANTED if isinstance(kind, str) else len(kind) > 1, entry.name
            assert entry.default is None or fits(kind, entry.default), entry.name
            assert entry.metadata["help"], entry.name
        assert method.knobs_from({}) == method.knobs()
        assert not method.strength or method.strength in {entry.name for entry in dataclasses.fields(method.knobs)}


def test_a_knob_may_be_none_only_where_that_is_its_default():
    @dataclass(frozen=True)
    class Blended(Knobs):
        blend: str | None = knob(None, "word", "a word")

    assert Blended().blend is None and Blended(blend="hat").blend == "hat"
    with pytest.raises(InputError, match="blend must be a word, got ' '"):
        Blended(blend=" ")


# What a model's config and a preset have to say


def test_knobs_are_the_methods_then_the_configs_then_the_callers(small):
    """A config has values for every method that has such a knob, and for one method alone."""
    defaults = {"guidance": 2.0, "self_steps": 0.5, "baret": {"self_steps": 0.9, "transition": [0.6, 0.2]}}
    config = dataclasses.replace(small.config, defaults=defaults)
    editor = minibaret.Editor(dataclasses.replace(small.model, config=config))
    assert editor.settings() == BaretKnobs(guidance=2.0, self_steps=0.9, transition=(0.6, 0.2))
    assert editor.settings(steps=7, guidance=1.0) == dataclasses.replace(editor.settings(), steps=7, guidance=1.0)
    assert editor.settings(echo) == Knobs(guidance=2.0)
    assert editor.settings(preset="paper") == BaretKnobs(solver="adam", inner_steps=5)
    assert editor.settings(preset="fast") == dataclasses.replace(editor.settings(), **FAST)
    assert editor.settings(preset="paper", steps=7) == BaretKnobs(steps=7, solver="adam", inner_steps=5)
    with pytest.raises(InputError, match="a preset must be one of paper, fast, got 'papre'"):
        editor.settings(preset="papre")


def test_a_preset_holds_for_an_edit(small, picture):
    assert small.settings() != small.settings(preset="paper")  # the miniature's
    result = small.edit(picture, PROMPT, preset="paper", steps=2, inner_steps=0)
    assert result.knobs == BaretKnobs(steps=2, solver="adam", inner_steps=0)


def test_a_knob_that_the_method_does_not_have(small, picture, calls):
    said = r"baret has no seed; what it has: steps, guidance, solver, inner-steps, step-length, "
    with pytest.raises(InputError, match=said):
        small.edit(picture, PROMPT, seed=1)
    with pytest.raises(InputError, match="echo has no cross-steps; what it has: steps, guidance"):
        small.edit(picture, PROMPT, echo, cross_steps=1.0)
    with pytest.raises(InputError, match=r"a method must be one of baret.*, got 'barte'"):
        small.edit(picture, PROMPT, "barte")
    assert not calls


# A method of one's own


def echo(sd, job: Job, knobs: Knobs):
    """Guided sampling from the end of a DDIM inversion with the empty prompt."""
    noise = (yield from trajectory(sd, job, "", knobs))[-1]
    branches = [Branch("edit", noise, sd.embed(job.prompt), sd.embed(""))]
    return (yield from sample(sd, branches, knobs.schedule, knobs.guidance))


def test_a_function_is_a_method(small, picture, calls):
    result = small.edit(picture, PROMPT, echo, steps=3, guidance=2.0)
    assert result.method.name == "echo" and result.knobs == Knobs(steps=3, guidance=2.0)
    assert result.image.size == (32, 32) and len(calls) == 6 and len(result.trajectory) == 4
    assert result.tuned == [] and result.summary()["row_forwards"] == 3 + 2 * 3
    assert result.images.keys() == {"edit"} and result.reconstruction_psnr is None


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (lambda job: None, "got NoneType"),
        (lambda job: job.latents, "got Tensor"),
        (lambda job: {"target": job.latents}, r"got branches \['target'\]"),
        (lambda job: {"edit": job.latents[0]}, r"got \(4, 4, 4\)"),
        (lambda job: {"edit": job.latents.numpy()}, "got ndarray"),
    ],
)
def test_a_method_that_returns_no_latents_of_an_edit(small, picture, found, said):
    def odd(sd, job, knobs):
        return found(job)
        yield

    wanted = r"odd must return latents by branch, those of 'edit' with the shape \(1, 4, 4, 4\), "
    with pytest.raises(InputError, match=wanted + said):
        small.edit(picture, PROMPT, odd)


def test_a_method_that_yields_no_steps(small, picture):
    def plain(sd, job, knobs):
        return {"edit": job.latents}

    with pytest.raises(InputError, match="plain must yield its steps and return latents, but it is no generator"):
        small.edit(picture, PROMPT, plain)

    def odd(sd, job, knobs):
        yield job.latents

    with pytest.raises(InputError, match="a method must yield a Step each time, got Tensor"):
        small.edit(picture, PROMPT, odd)


def test_what_a_method_says_that_it_needs_is_asked_for(small, picture, calls):
    seen = []

    def edit(sd, job, knobs):
        seen.append((job.prompt, job.source_prompt, job.source))
        return {"edit": job.latents}
        yield

    asking = Method("asking", "", "", edit, needs_source=True)
    with pytest.raises(InputError, match="asking needs a source prompt that says what the picture shows, got none"):
        small.edit(picture, PROMPT, asking)
    small.edit(picture, PROMPT, asking, source_prompt=OTHER)
    small.edit(picture, PROMPT, dataclasses.replace(asking, needs_source=False))
    assert seen == [(PROMPT, OTHER, OTHER), (PROMPT, None, "")] and not calls
    assert asking.needs() == "source prompt" and METHODS["baret"].needs() == "–"
    with pytest.raises(InputError, match="asking has no slow part that could be kept"):
        small.invert(picture, PROMPT, asking)


# Sharing


def test_two_methods_share_one_trajectory(small, picture, calls, one_thread):
    """In memory: what an edit found is handed to the next, which does not look for it again."""
    null = {**QUICK, "inversion_prompt": "null"}
    first = small.edit(picture, PROMPT, echo, steps=4, guidance=7.5)
    calls.clear()
    stages = []
    shared = small.edit(picture, PROMPT, inversion=first.kept, watch=lambda step: stages.append(step.stage), **null)
    assert stages == ["target-text inversion"] * 4 + ["edit"] * 4 and "encode" not in shared.seconds
    alone = small.edit(picture, PROMPT, **null)
    assert torch.equal(shared.latents["edit"], alone.latents["edit"])
    assert [entry.name for entry in shared.kept.entries] == ["trajectory", "target embeddings"]
    assert len(first.kept.entries) == 1  # what was handed over is not written to
    calls.clear()
    again = small.edit(picture, OTHER, echo, steps=4, guidance=7.5, inversion=shared.kept)
    assert len(calls) == 4 and torch.equal(again.trajectory[-1], first.trajectory[-1])


def test_what_one_job_keeps_serves_the_next(small):
    """Without an editor: the same `kept`, other settings beside it."""
    kept = minibaret.Inversion()
    sd, latents = small.sd, torch.randn(1, 4, 4, 4)
    for steps, entries in ((2, 1), (3, 2), (2, 2)):
        rows = sd.counts.row_forwards
        work = trajectory(sd, Job(latents, PROMPT, kept=kept), "", Knobs(steps=steps))
        done = len(list(work))
        assert len(kept.entries) == entries and sd.counts.row_forwards - rows == done
    assert done == 0
    assert [len(entry.items) for entry in kept.entries] == [4, 3]  # what was used last is last


def test_knobs_stand_for_their_method(small, picture):
    assert len({method.knobs for method in METHODS.values()}) == len(METHODS)
    knobs = small.settings("sdedit", steps=3, strength=0.9)
    result = small.edit(picture, "a cat", knobs, strength=0.4)
    assert result.method.name == "sdedit" and (result.knobs.steps, result.knobs.strength) == (3, 0.4)
    with pytest.raises(InputError, match="a method must be one of baret"):
        small.edit(picture, "a cat", Knobs())


@pytest.mark.parametrize("method", ["baret", "prompt-tuning", "null-text"])
def test_what_was_tuned_is_known_by_the_knobs_and_prompts_it_depends_on(small, picture, method):
    result = small.edit(picture, PROMPT, method, source_prompt=OTHER, steps=2)
    tokens, knobs = [small.sd.tokens(text) for text in (PROMPT, OTHER)], vars(result.knobs)
    assert result.kept.holds_tuning(knobs, tokens)
    assert not result.kept.holds_tuning({**knobs, "guidance": 3.25}, tokens)
    assert not result.kept.holds_tuning(knobs, [small.sd.tokens("a cat")])


def test_a_tuned_copy_of_a_compiled_network_computes_with_its_own_weights():
    network = torch.nn.Linear(2, 2)
    network.forward = network.forward  # as torch.compile's stands there
    made = copy_to_tune(network)
    made.weight.data.zero_()
    assert torch.equal(made(torch.ones(1, 2))[0], made.bias) and made(torch.ones(1, 2)).requires_grad
