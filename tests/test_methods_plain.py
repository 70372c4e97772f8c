"""The methods without attention control against diffusers' pipelines, or loops of their papers' formulas on diffusers'
networks: same random weights, same noise, same prompts. Nothing of minibaret is used in those loops."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from checkpoints import TINY, random_weights, write_configs, write_hugging_face

import minibaret
from minibaret.inversion import Inversion, load_inversion
from minibaret.methods import METHODS, Job, diffedit
from minibaret.pipeline import StableDiffusion
from minibaret.weights import load_model

diffusers = pytest.importorskip("diffusers", reason="methods are measured against diffusers and transformers")
transformers = pytest.importorskip("transformers", reason="methods are measured against diffusers and transformers")

SOURCE, TARGET = "a dog", "a cab, dog"
STEPS, GUIDANCE = 6, 5.0
PLAIN = ("encode-decode", "sdedit", "diffedit", "prompt-tuning", "sine", "imagic")
SHORT = {  # of the methods that tune; rates at which the few steps tell
    "prompt-tuning": {"solver": "adam", "inner_steps": 2, "learning_rate": 1e-2, "eta": 0.6},
    "sine": {"tuning_steps": 3, "learning_rate": 1e-4},
    "imagic": {"embedding_steps": 3, "embedding_rate": 1e-2, "unet_steps": 3, "unet_rate": 1e-4},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Random weights under diffusers' names."""
    folder = write_configs(tmp_path_factory.mktemp("tiny") / "folder", TINY)
    return write_hugging_face(folder, random_weights(TINY))


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder, sizes=TINY)


@pytest.fixture
def job() -> Job:
    return Job(torch.randn(1, 4, 16, 24), TARGET, SOURCE)


@pytest.fixture
def run(model, job):
    """Runs a method on the job; returns its final latents by branch, and its steps."""

    def run(name: str, job: Job = job, sd: StableDiffusion | None = None, **knobs):
        method = METHODS[name]
        knobs = method.knobs_from({"steps": STEPS, "guidance": GUIDANCE, **SHORT.get(name, {}), **knobs})
        return drain(method.edit(sd or StableDiffusion(model), job, knobs))

    return run


def drain(work):
    """What a generator returns, and all that it yields."""
    steps = []
    while True:
        try:
            steps.append(next(work))
        except StopIteration as end:
            return end.value, steps


class Theirs:
    """diffusers' and transformers' networks and schedulers, and the loops on them."""

    def __init__(self, folder):
        self.unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet").requires_grad_(False).eval()
        self.text = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder").requires_grad_(False).eval()
        self.vae = diffusers.AutoencoderKL.from_pretrained(folder / "vae").eval()
        self.tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer")
        schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
        schedule |= {"clip_sample": False, "set_alpha_to_one": False}
        self.ddim, self.inverse = diffusers.DDIMScheduler(**schedule), diffusers.DDIMInverseScheduler(**schedule)
        self.ddim.set_timesteps(STEPS)
        self.inverse.set_timesteps(STEPS)

    def ids(self, prompt):
        return self.tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids

    def embed(self, prompt):
        return self.text(self.ids(prompt)).last_hidden_state

    def eps(self, z, t, e):
        return self.unet(z, t, e).sample

    def guided(self, z, t, e):
        null = self.eps(z, t, self.embed(""))
        return null + GUIDANCE * (self.eps(z, t, e) - null)

    def invert(self, z, count=STEPS):
        """z*[0] … z*[count], with the empty prompt."""
        found = [z]
        for t in self.inverse.timesteps[:count]:
            found.append(self.inverse.step(self.eps(found[-1], t, self.embed("")), t, found[-1]).prev_sample)
        return found

    def decode(self, z, e, count=STEPS, after=lambda i, z: z, eps=None):
        """The last `count` steps of guided sampling; e: an embedding, or one for each step."""
        for i, t in list(enumerate(self.ddim.timesteps))[STEPS - count :]:
            noise = (eps or self.guided)(z, t, e[i] if isinstance(e, list) else e)
            z = after(i, self.ddim.step(noise, t, z).prev_sample)
        return z

    def pipeline(self, kind, **others):
        parts = {"vae": self.vae, "text_encoder": self.text, "tokenizer": self.tokenizer, "unet": self.unet}
        parts |= {"scheduler": self.ddim, "safety_checker": None, "feature_extractor": None, **others}
        pipeline = kind(**parts, requires_safety_checker=False)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def tune(self, unet, z0, context, parameters, steps, rate, numbers):
        """Adam on the loss that diffusion models are trained with."""
        adam = torch.optim.Adam(parameters, lr=rate)
        for _ in range(steps):
            t = torch.randint(1000, (1,), generator=numbers)
            noise = torch.randn(z0.shape, generator=numbers)
            adam.zero_grad()
            F.mse_loss(unet(self.ddim.add_noise(z0, noise, t), t, context()).sample, noise).backward()
            adam.step()


@pytest.fixture
def theirs(folder):
    return Theirs(folder)


def error(ours, theirs) -> float:
    """Root mean square of the difference, relative to theirs."""
    assert ours.shape == theirs.shape and ours.isfinite().all()
    return ((ours.double() - theirs.double()).square().mean() / theirs.double().square().mean()).sqrt().item()


@pytest.mark.parametrize(("ratio", "count"), [(0.5, 3), (0.8, 4), (1.0, 6)])
@torch.no_grad()
def test_encode_decode_is_diffusers_schedulers_in_a_row(run, job, theirs, ratio, count, within):
    expected = theirs.decode(theirs.invert(job.latents, count)[-1], theirs.embed(TARGET), count)
    within(f"encode-decode, r {ratio}", error(run("encode-decode", ratio=ratio)[0]["edit"], expected), 1e-3)


@pytest.mark.parametrize(("strength", "seed"), [(0.8, 0), (0.55, 3), (1.0, 4)])
def test_sdedit_is_diffusers_img2img(run, job, theirs, strength, seed, within):
    pipeline = theirs.pipeline(diffusers.StableDiffusionImg2ImgPipeline)
    expected = pipeline(
        TARGET, job.latents, strength, STEPS, guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(seed), output_type="latent",
    ).images  # fmt: skip
    found, steps = run("sdedit", strength=strength, seed=seed)
    assert len(steps) == int(STEPS * strength)
    within(f"SDEdit, s {strength}, against diffusers' img2img", error(found["edit"], expected), 1e-3)


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
    found, _ = run("diffedit", ratio=0.8, seed=3)
    assert torch.equal(found["edit"][..., ~mask], job.latents[..., ~mask])
    within(f"DiffEdit, source prompt {source!r}", error(found["edit"], expected), 1e-3)


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
    plain, _ = run("diffedit", ratio=0.8, seed=3)
    sample = diffedit.sample

    def sample_with_a_step_off(*arguments, after, **options):
        return sample(*arguments, after=lambda step, latents: after(step - 1, latents), **options)

    monkeypatch.setattr(diffedit, "sample", sample_with_a_step_off)
    found, _ = run("diffedit", ratio=0.8, seed=3)
    within("DiffEdit with a step off, against diffusers' DiffEdit", error(found["edit"], expected), 1e-3)
    assert error(plain["edit"], expected) > 1e-2


def test_prompt_tuning_is_its_published_loop(run, job, theirs, within):
    with torch.no_grad():
        trajectory, target = theirs.invert(job.latents), theirs.embed(TARGET)
    z, e, tuned = trajectory[-1], target, []
    for i, t in enumerate(theirs.ddim.timesteps):
        e = e.detach().clone().requires_grad_()
        adam = torch.optim.Adam([e], lr=1e-2)
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
    found, _ = run("prompt-tuning")
    within("prompt tuning, the reconstruction", error(found["reconstruction"], z), 1e-3)
    within("prompt tuning, the edit", error(found["edit"], expected), 1e-3)


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
    found, _ = run("sine", source_weight=0.4, seed=3)
    within("SINE", error(found["edit"], expected), 1e-3)
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
    found, _ = run("imagic", target_weight=0.8, seed=3)
    within("Imagic, the embedding", error(job.kept.entries[0].items[0][0], e_opt.detach()), 1e-3)
    within("Imagic, the edit", error(found["edit"], expected), 1e-3)
    assert error(untuned, expected) > 1e-2


# What holds for each of them


@pytest.mark.parametrize("name", PLAIN)
def test_networks_stay_as_they_were_and_the_same_run_is_the_same(run, model, job, name, one_thread):
    networks = {"unet": model.unet, "text_encoder": model.text_encoder}
    before = {part: copy.deepcopy(network.state_dict()) for part, network in networks.items()}
    edits = [run(name, Job(job.latents, TARGET, SOURCE), steps=3)[0]["edit"] for _ in range(2)]
    assert torch.equal(*edits)
    for part, network in networks.items():
        assert all(torch.equal(value, before[part][key]) for key, value in network.state_dict().items())
        assert not any(weight.requires_grad or weight.grad is not None for weight in network.parameters())


@pytest.mark.parametrize("name", ["sdedit", "diffedit", "sine", "imagic"])
def test_another_seed_is_another_edit_and_too_large_a_seed_is_refused(run, name):
    assert error(run(name, steps=3, seed=1)[0]["edit"], run(name, steps=3, seed=2)[0]["edit"]) > 1e-3
    with pytest.raises(minibaret.InputError, match="seed must be at least 0 and below 2⁶⁴, got 18446744073709551616"):
        run(name, steps=3, seed=2**64)


@pytest.mark.parametrize(
    ("name", "knobs"), [("sdedit", {"strength": 0.0}), ("encode-decode", {"ratio": 0.09}), ("diffedit", {"ratio": 0})]
)
def test_no_step_at_all_leaves_the_picture(run, job, name, knobs):
    assert torch.equal(run(name, **knobs)[0]["edit"], job.latents)


def test_diffedit_with_equal_prompts_leaves_the_picture(run, job):
    assert torch.equal(run("diffedit", dataclasses.replace(job, source_prompt=TARGET))[0]["edit"], job.latents)


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("prompt-tuning", {"inversion": STEPS, "target-text inversion": STEPS, "edit": STEPS}),
        ("sine", {"fine-tuning": 3, "edit": STEPS}),
        ("imagic", {"embedding tuning": 3, "UNet tuning": 3, "edit": STEPS}),
    ],
)
def test_every_step_is_shown_and_counted(run, model, name, stages):
    sd = StableDiffusion(model)
    steps = run(name, sd=sd)[1]
    assert [(step.stage, step.index, step.total) for step in steps] == [
        (stage, index, total) for stage, total in stages.items() for index in range(total)
    ]
    assert sd.counts.gradient_passes == sum(step.iterations or 0 for step in steps) > 0


@pytest.mark.parametrize("name", ["prompt-tuning", "imagic"])
def test_what_is_kept_is_not_tuned_again(run, model, job, name):
    method = METHODS[name]
    knobs = method.knobs_from({"steps": STEPS, "guidance": GUIDANCE, **SHORT[name]})
    expected, _ = run(name)
    other = Job(job.latents, TARGET, kept=Inversion())
    drain(method.invert(StableDiffusion(model), other, knobs))
    found, steps = drain(method.edit(StableDiffusion(model), other, knobs))
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
        small.edit(picture, "a brown dog lying down on grass", method="sine")


def test_the_memory_of_tuned_copies_is_foreseen(editor, picture):
    """Weights, gradients and Adam's two averages in float32: 16 bytes for each weight."""
    short = {
        "prompt-tuning": {"inner_steps": 1},
        "sine": {"tuning_steps": 1},
        "imagic": {"embedding_steps": 1, "unet_steps": 1},
    }
    estimates = {
        name: editor.edit(picture, TARGET, name, source_prompt=SOURCE, steps=1, **knobs).memory_estimate
        for name, knobs in short.items()
    }
    weights = editor.model.parameter_counts()
    copies = {"sine": weights["unet"] + weights["text_encoder"], "imagic": weights["unet"]}
    for name, count in copies.items():
        assert 1 <= (estimates[name] - estimates["prompt-tuning"]) / (16 * count) < 1.2
