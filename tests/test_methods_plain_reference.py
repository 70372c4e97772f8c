"""The methods without attention control against diffusers' pipelines, or loops of their papers' formulas on diffusers'
networks (theirs.py): same random weights, same noise, same prompts."""

import copy

import pytest
import torch
import torch.nn.functional as F
from checkpoints import TINY, random_weights, write_configs, write_hugging_face
from runs import drain, error

from minibaret.methods import METHODS, Job, diffedit
from minibaret.pipeline import StableDiffusion
from minibaret.weights import load_model

pytest.importorskip("diffusers", reason="methods are measured against diffusers and transformers")
pytest.importorskip("transformers", reason="methods are measured against diffusers and transformers")
import diffusers
from theirs import GUIDANCE, STEPS, Theirs

SOURCE, TARGET = "a dog", "a cab, dog"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Random weights under diffusers' names."""
    folder = write_configs(tmp_path_factory.mktemp("tiny") / "folder", TINY)
    return write_hugging_face(folder, random_weights(TINY))


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder, sizes=TINY)


@pytest.fixture
def theirs(folder):
    return Theirs(folder)


@pytest.fixture
def job() -> Job:
    return Job(torch.randn(1, 4, 16, 24), TARGET, SOURCE)


@pytest.fixture
def run(model, job):
    """Runs a method on the job; returns its steps, and its final latents by branch."""

    def run(name: str, **knobs):
        method = METHODS[name]
        return drain(method.edit(StableDiffusion(model), job, method.knobs(steps=STEPS, guidance=GUIDANCE, **knobs)))

    return run


@pytest.mark.parametrize(("ratio", "count"), [(0.5, 3), (0.8, 4), (1.0, 6)])
@torch.no_grad()
def test_encode_decode_is_diffusers_schedulers_in_a_row(run, job, theirs, ratio, count, within):
    expected = theirs.decode(theirs.invert(job.latents, count)[-1], theirs.embed(TARGET), count)
    within(f"encode-decode, r {ratio}", error(run("encode-decode", ratio=ratio)[1]["edit"], expected), 2e-5)


@pytest.mark.parametrize(("strength", "seed"), [(0.8, 0), (0.55, 3), (1.0, 4)])
def test_sdedit_is_diffusers_img2img(run, job, theirs, strength, seed, within):
    pipeline = theirs.pipeline(diffusers.StableDiffusionImg2ImgPipeline)
    expected = pipeline(
        TARGET, job.latents, strength, STEPS, guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(seed), output_type="latent",
    ).images  # fmt: skip
    steps, found = run("sdedit", strength=strength, seed=seed)
    assert len(steps) == int(STEPS * strength)
    within(f"SDEdit, s {strength}, against diffusers' img2img", error(found["edit"], expected), 2e-5)


@pytest.mark.parametrize("source", [SOURCE, None], ids=["source prompt", "no source prompt"])
@torch.no_grad()
def test_diffedit_is_its_three_formulas(run, job, theirs, source, within):
    job.source_prompt = source
    noises = torch.randn(10, 4, 16, 24, generator=torch.Generator().manual_seed(3))
    half = theirs.ddim.timesteps[3]
    noisy = theirs.ddim.add_noise(job.latents.expand(10, -1, -1, -1), noises, half)
    predicted = [theirs.eps(noisy, half, theirs.embed(text).expand(10, -1, -1)) for text in (TARGET, source or "")]
    difference = (predicted[0] - predicted[1]).abs().mean((0, 1))
    mask = difference.clamp(max=3 * difference.mean()) / (3 * difference.mean()) > 0.5
    assert 0.02 < mask.float().mean() < 0.6  # it says something
    encoded = theirs.invert(job.latents, 4)
    expected = theirs.decode(
        encoded[4], theirs.embed(TARGET), 4, after=lambda i, z: torch.where(mask, z, encoded[STEPS - 1 - i])
    )
    _, found = run("diffedit", ratio=0.8, seed=3)
    assert torch.equal(found["edit"][..., ~mask], job.latents[..., ~mask])
    within(f"DiffEdit, source prompt {source!r}", error(found["edit"], expected), 2e-5)


def test_diffedit_is_diffusers_pipeline_but_for_one_step(run, job, theirs, monkeypatch, within):
    """That pipeline puts back the latent of the timestep before; ours is made to, here. It also guides while it finds
    the mask, which multiplies all differences by the same number, and while it encodes, which does nothing where the
    prompt is empty."""
    pipeline = theirs.pipeline(diffusers.StableDiffusionDiffEditPipeline, inverse_scheduler=theirs.inverse)
    numbers = torch.Generator().manual_seed(3)
    mask = pipeline.generate_mask(
        job.latents, TARGET, source_prompt=SOURCE, num_inference_steps=STEPS, generator=numbers, output_type="np"
    )
    encoded = pipeline.invert("", job.latents, STEPS, inpaint_strength=0.8, guidance_scale=7.5).latents
    expected = pipeline(
        TARGET, mask, encoded, inpaint_strength=0.8, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
        output_type="latent",
    ).images  # fmt: skip
    _, plain = run("diffedit", ratio=0.8, seed=3)
    sample = diffedit.sample

    def sample_with_a_step_off(*arguments, after, **options):
        return sample(*arguments, after=lambda step, latents: after(step - 1, latents), **options)

    monkeypatch.setattr(diffedit, "sample", sample_with_a_step_off)
    _, found = run("diffedit", ratio=0.8, seed=3)
    within("DiffEdit with a step off, against diffusers' DiffEdit", error(found["edit"], expected), 2e-5)
    assert error(plain["edit"], expected) > 1e-2


def test_prompt_tuning_is_its_published_loop(run, job, theirs, within):
    with torch.no_grad():
        trajectory, target = theirs.invert(job.latents), theirs.embed(TARGET)
    z, e, tuned = trajectory[-1], target, []
    for i, t in enumerate(theirs.ddim.timesteps):
        e = e.detach().clone().requires_grad_()
        adam = torch.optim.Adam([e], lr=1e-2 * (1 - i / 100))
        for _ in range(2):
            adam.zero_grad()
            moved = theirs.ddim.step(theirs.guided(z, t, e), t, z).prev_sample
            F.mse_loss(moved, trajectory[STEPS - 1 - i]).backward()
            adam.step()
        with torch.no_grad():
            z = theirs.ddim.step(theirs.guided(z, t, e), t, z).prev_sample
        tuned.append(e.detach())
    with torch.no_grad():
        expected = theirs.decode(trajectory[-1], [0.6 * e + 0.4 * target for e in tuned])
    _, found = run("prompt-tuning", solver="adam", inner_steps=2, learning_rate=1e-2, eta=0.6)
    within("prompt tuning, the reconstruction", error(found["reconstruction"], z), 2e-5)
    within("prompt tuning, the edit", error(found["edit"], expected), 2e-5)


def test_sine_is_its_formulas(run, job, theirs, within):
    numbers = torch.Generator().manual_seed(3)
    start = torch.randn(job.latents.shape, generator=numbers)
    unet, text = copy.deepcopy(theirs.unet).requires_grad_(), copy.deepcopy(theirs.text).requires_grad_()

    def source():
        return text(theirs.ids(SOURCE)).last_hidden_state

    theirs.tune(unet, job.latents, source, [*unet.parameters(), *text.parameters()], 3, 1e-4, numbers)

    def eps(z, t, e):
        null, target = theirs.eps(z, t, theirs.embed("")), theirs.eps(z, t, e)
        if t < 400:
            return null + GUIDANCE * (target - null)
        return null + GUIDANCE * (0.6 * target + 0.4 * unet(z, t, source()).sample - null)

    with torch.no_grad():
        expected = theirs.decode(start, theirs.embed(TARGET), eps=eps)
        untuned = theirs.decode(start, theirs.embed(TARGET))
    _, found = run("sine", tuning_steps=3, learning_rate=1e-4, source_weight=0.4, seed=3)
    within("SINE", error(found["edit"], expected), 2e-5)
    assert error(untuned, expected) > 1e-2


def test_imagic_is_its_three_stages(run, job, theirs, within):
    with torch.no_grad():
        target = theirs.embed(TARGET)
    e_opt = target.clone().requires_grad_()
    theirs.tune(theirs.unet, job.latents, lambda: e_opt, [e_opt], 3, 1e-2, torch.Generator().manual_seed(3))
    numbers = torch.Generator().manual_seed(3)
    start = torch.randn(job.latents.shape, generator=numbers)
    with torch.no_grad():
        untuned = theirs.decode(start, target)
    theirs.unet.requires_grad_()
    parameters = list(theirs.unet.parameters())
    theirs.tune(theirs.unet, job.latents, e_opt.detach, parameters, 3, 1e-4, numbers)
    with torch.no_grad():
        expected = theirs.decode(start, 0.8 * target + 0.2 * e_opt)
    tuning = {"embedding_steps": 3, "embedding_rate": 1e-2, "unet_steps": 3, "unet_rate": 1e-4}
    _, found = run("imagic", **tuning, target_weight=0.8, seed=3)
    within("Imagic, the embedding", error(job.kept.entries[0].items[0][0], e_opt.detach()), 2e-5)
    within("Imagic, the edit", error(found["edit"], expected), 2e-5)
    assert error(untuned, expected) > 1e-2
