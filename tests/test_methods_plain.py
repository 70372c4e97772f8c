"""The methods without attention control, from outside: what they leave alone, show, count, keep and refuse."""

import copy
import dataclasses

import pytest
import torch
from runs import PROMPT, drain, error

import minibaret
from minibaret.inversion import load_inversion
from minibaret.methods import METHODS, Job

SOURCE, STEPS = "a brown dog standing on grass", 6
PLAIN = ("encode-decode", "sdedit", "diffedit", "prompt-tuning", "sine", "imagic")
SHORT = {  # of the methods that tune; rates at which the few steps tell
    "prompt-tuning": {"solver": "adam", "inner_steps": 2, "learning_rate": 1e-2, "eta": 0.6},
    "sine": {"tuning_steps": 3, "learning_rate": 1e-4},
    "imagic": {"embedding_steps": 3, "embedding_rate": 1e-2, "unet_steps": 3, "unet_rate": 1e-4},
}


@pytest.fixture
def job() -> Job:
    return Job(torch.randn(1, 4, 16, 24), PROMPT, SOURCE)


def knobs_of(name: str, **knobs):
    return METHODS[name].knobs(**{"steps": STEPS, "guidance": 5.0, **SHORT.get(name, {}), **knobs})


@pytest.fixture
def run(small, job):
    """Runs a method on a job; returns its steps, and its final latents by branch."""

    def run(name: str, job: Job = job, **knobs):
        return drain(METHODS[name].edit(small.sd, job, knobs_of(name, **knobs)))

    return run


@pytest.mark.parametrize("name", PLAIN)
def test_networks_stay_as_they_were_and_the_same_run_is_the_same(run, small, job, name, one_thread):
    networks = {"unet": small.model.unet, "text_encoder": small.model.text_encoder}
    before = {part: copy.deepcopy(network.state_dict()) for part, network in networks.items()}
    edits = [run(name, Job(job.latents, PROMPT, SOURCE), steps=3)[1]["edit"] for _ in range(2)]
    assert torch.equal(*edits)
    for part, network in networks.items():
        assert all(torch.equal(value, before[part][key]) for key, value in network.state_dict().items())
        assert not any(weight.requires_grad or weight.grad is not None for weight in network.parameters())


@pytest.mark.parametrize("name", ["sdedit", "diffedit", "sine", "imagic"])
def test_another_seed_is_another_edit_and_too_large_a_seed_is_refused(run, name):
    assert error(run(name, steps=3, seed=1)[1]["edit"], run(name, steps=3, seed=2)[1]["edit"]) > 1e-3
    with pytest.raises(minibaret.InputError, match="seed must be at least 0 and below 2⁶⁴, got 18446744073709551616"):
        run(name, steps=3, seed=2**64)


@pytest.mark.parametrize(
    ("name", "knobs"), [("sdedit", {"strength": 0.0}), ("encode-decode", {"ratio": 0.09}), ("diffedit", {"ratio": 0})]
)
def test_no_step_at_all_leaves_the_picture(run, job, name, knobs):
    assert torch.equal(run(name, **knobs)[1]["edit"], job.latents)


def test_diffedit_with_equal_prompts_leaves_the_picture(run, job):
    assert torch.equal(run("diffedit", dataclasses.replace(job, source_prompt=PROMPT))[1]["edit"], job.latents)


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("prompt-tuning", {"inversion": STEPS, "target-text inversion": STEPS, "edit": STEPS}),
        ("sine", {"fine-tuning": 3, "edit": STEPS}),
        ("imagic", {"embedding tuning": 3, "UNet tuning": 3, "edit": STEPS}),
    ],
)
def test_every_step_is_shown_and_counted(run, small, name, stages):
    steps, _ = run(name)
    assert [(step.stage, step.index, step.total) for step in steps] == [
        (stage, index, total) for stage, total in stages.items() for index in range(total)
    ]
    assert small.sd.counts.gradient_passes == sum(step.iterations or 0 for step in steps) > 0


@pytest.mark.parametrize("name", ["prompt-tuning", "imagic"])
def test_what_is_kept_is_not_tuned_again(run, small, job, name, one_thread):
    _, expected = run(name)
    other = Job(job.latents, PROMPT)
    drain(METHODS[name].invert(small.sd, other, knobs_of(name)))
    steps, found = run(name, other)
    assert torch.equal(found["edit"], expected["edit"])
    assert not {"target-text inversion", "embedding tuning"} & {step.stage for step in steps}


@pytest.mark.parametrize("name", ["sine", "imagic"])
def test_a_loss_that_is_not_finite_is_refused(run, job, name):
    with pytest.raises(minibaret.InputError, match="tuning needs a finite loss, got nan: a smaller learning rate"):
        run(name, dataclasses.replace(job, latents=torch.full_like(job.latents, torch.nan)))


def test_a_file_keeps_imagics_embedding(small, picture, tmp_path):
    arguments, knobs = (picture, "a dog on grass", "imagic"), {**SHORT["imagic"], "steps": 3, "seed": 7}
    expected = small.edit(*arguments, **knobs)
    small.invert(*arguments, file=tmp_path / "dog.safetensors", **knobs)
    kept = load_inversion(tmp_path / "dog.safetensors")
    found = small.edit(*arguments, inversion=kept, steps=3, unet_steps=3, unet_rate=1e-4)
    assert "embedding tuning" not in found.seconds and found.knobs == expected.knobs
    assert torch.equal(found.latents["edit"], expected.latents["edit"])
    with pytest.raises(minibaret.InputError, match="it was made with seed 7, not 8"):
        small.edit(*arguments, inversion=kept, seed=8)


def test_sine_needs_a_source_prompt(small, picture):
    with pytest.raises(minibaret.InputError, match="sine needs a source prompt that says what the picture shows"):
        small.edit(picture, PROMPT, "sine")


def test_the_memory_of_tuned_copies_is_foreseen(editor, picture):
    """Weights, gradients and Adam's two averages in float32: 16 bytes for each weight."""
    short = {
        "prompt-tuning": {"inner_steps": 1},
        "sine": {"tuning_steps": 1},
        "imagic": {"embedding_steps": 1, "unet_steps": 1},
    }
    estimates = {
        name: editor.edit(picture, PROMPT, name, source_prompt=SOURCE, steps=1, **knobs).memory_estimate
        for name, knobs in short.items()
    }
    weights = editor.model.parameter_counts()
    copies = {"sine": weights["unet"] + weights["text_encoder"], "imagic": weights["unet"]}
    for name, count in copies.items():
        assert 1 <= (estimates[name] - estimates["prompt-tuning"]) / (16 * count) < 1.2
