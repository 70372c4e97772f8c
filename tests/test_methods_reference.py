"""Each method against its paper's arithmetic on diffusers' UNet (eager.py), where maps are materialised.

Both have the same random weights in Stable Diffusion 1.5's shape, narrow, and the same prompts and start.
"""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from checkpoints import TINY, random_weights

from minibaret.methods import METHODS, Job, local_blend
from minibaret.methods.prompt_to_prompt import generate
from minibaret.models.unet import UNet
from minibaret.pipeline import StableDiffusion
from minibaret.progress import run_to_end

pytest.importorskip("diffusers", reason="the methods are measured against arithmetic on diffusers' UNet")
import eager

LIMIT = 1e-4  # of the final latents, relative
SOURCE = "a brown dog standing on grass"
REFINED = "a brown dog lying down on grass"
REPLACED = "a zebra dog standing on grass"  # zebra: four tokens of the miniature's
GUIDANCE, STEPS, SIDE = 3.0, 5, 16  # of latents: one of 256 tokens at the finest level


@pytest.fixture(scope="module")
def networks(louder):
    """The same weights, as a StableDiffusion of ours that reads with the miniature's text encoder, and diffusers'."""
    config = dataclasses.replace(louder.config, unet=dataclasses.replace(TINY.unet, context_width=128))
    weights = random_weights(dataclasses.replace(TINY, unet=config.unet))["unet"]
    for name, value in weights.items():
        if name.endswith("attn2.to_k.weight"):
            value.mul_(4)  # so that words have places in the picture
    unet = UNet(config.unet)
    unet.load_state_dict(weights)
    model = dataclasses.replace(louder, config=config, unet=unet.requires_grad_(False).eval())
    return StableDiffusion(model), eager.build_unet(config.unet, weights)


@pytest.fixture(scope="module")
def picture_latents():
    return torch.randn(1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(7))


def run(method: str, sd, latents, prompt, source_prompt=SOURCE, pictures=("source",), **knobs):
    job = Job(latents, prompt, source_prompt, pictures=pictures)
    knobs = {"steps": STEPS, "guidance": GUIDANCE, **knobs}
    return run_to_end(METHODS[method].edit(sd, job, METHODS[method].knobs(**knobs))), job


def contexts(sd, prompt, source_prompt=SOURCE, uncond=""):
    null, source, target = (sd.embed(text) for text in (uncond, source_prompt, prompt))
    return lambda step: torch.cat([null, null, source, target])


def error(ours, theirs) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def check(within, method, found, reference, uncontrolled):
    """found: final latents by branch; reference: the source's and the edit's, or the edit's alone; uncontrolled: the
    edit's where nothing is taken, so that a control which does nothing is told from one that is right."""
    for name, latents in zip(("source", "edit")[-len(reference) :], reference):
        within(f"{method}: the {name}'s final latents", error(found[name], latents), LIMIT)
    assert error(uncontrolled, reference[-1]) > 100 * LIMIT


class WordMaps:
    """Prompt-to-prompt's hook: maps of the edit's conditional row (3) made of the source's (2) while the steps say so,
    and of the 16² layers the words' maps, added up."""

    def __init__(self, mapped, weights=1.0, self_steps=2, cross_steps=4):
        self.mapped, self.weights, self.taus = mapped, weights, (self_steps, cross_steps)
        self.sums = torch.zeros(2, 256, 77)

    def __call__(self, step, name, q, k, v):
        maps = eager.maps_of(q, k)
        if name.endswith("attn1") and maps.shape[-1] <= 32**2 and step < self.taus[0]:
            maps[3] = maps[2]
        if name.endswith("attn2") and step < self.taus[1]:
            maps[3] = self.mapped(maps[2], maps[3]) * self.weights
        if name.endswith("attn2") and maps.shape[-2] == 256:
            self.sums += maps[2:].mean(1)
        return maps @ v


UNCONTROLLED = WordMaps(None, self_steps=0, cross_steps=0)


def replaced(source, edit):
    """By hand: start and "a", "brown" shared by the four tokens of "zebra", all others three places on."""
    matrix = torch.zeros(77, 77)
    matrix[0, 0] = matrix[1, 1] = 1
    matrix[2, 2:6] = 1 / 4
    for token in range(3, 74):
        matrix[token, token + 3] = 1
    return torch.einsum("hpw,wn->hpn", source, matrix)


def refined(source, edit):
    """By hand: "lying" and "down" (4 and 5) have no partner; "on grass" and the end come from one place before."""
    partners = [0, 1, 2, 3, 0, 0, 5, 6, 7, *range(9, 77)]
    alphas = torch.ones(77)
    alphas[4:6] = 0
    return source[..., partners] * alphas + edit * (1 - alphas)


TRIPLED = torch.ones(77)
TRIPLED[3] = 3.0  # "dog", in the target REFINED


@pytest.mark.parametrize(
    ("prompt", "mapped", "weights", "reweight"),
    [
        pytest.param(REPLACED, replaced, 1.0, (), id="replace"),
        pytest.param(REFINED, refined, 1.0, (), id="refine"),
        pytest.param(REFINED, refined, TRIPLED, (("dog", 3.0),), id="refine and reweight"),
        pytest.param(SOURCE, lambda source, edit: source, TRIPLED, (("dog", 3),), id="reweight"),
    ],
)
def test_prompt_to_prompts_controllers(networks, within, request, prompt, mapped, weights, reweight):
    sd, unet = networks
    knobs = METHODS["prompt-to-prompt"].knobs(steps=STEPS, guidance=GUIDANCE, reweight=reweight)
    found = run_to_end(generate(sd, SOURCE, prompt, knobs, shape=(1, 4, SIDE, SIDE), seed=5))
    noise = torch.randn(1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(5))

    def reference(hook):
        return eager.sample_pair(unet, noise, noise, contexts(sd, prompt), STEPS, GUIDANCE, hook)

    pair = reference(WordMaps(mapped, weights))
    check(within, request.node.callspec.id, found, pair, reference(UNCONTROLLED)[1])
    if not reweight:
        for part in ({"self_steps": 0}, {"cross_steps": 0}):  # each matters
            assert error(reference(WordMaps(mapped, **part))[1], pair[1]) > 100 * LIMIT


@pytest.mark.parametrize(
    ("blend", "columns"), [("dog", ([3], [3])), ("lying", ([], [4])), ("standing lying", ([4], [4]))]
)
def test_prompt_to_prompt_from_an_inversion_with_local_blend(
    networks, picture_latents, within, monkeypatch, blend, columns
):
    """With a higher threshold than its own, since random networks look nearly everywhere."""
    monkeypatch.setattr(local_blend, "THRESHOLD", 0.8)
    sd, unet = networks
    found, _ = run("prompt-to-prompt", sd, picture_latents, REFINED, blend=blend)
    start = eager.ddim_inversion(unet, picture_latents, sd.embed(SOURCE), STEPS)[-1]
    hook, shares = WordMaps(refined), []

    def after(step, source, edit):
        inside = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.bool)
        for maps, tokens in zip(hook.sums / (5 * (step + 1)), columns):  # the mean of five layers and the steps so far
            region = F.max_pool2d(maps[:, tokens].sum(-1).view(1, 1, SIDE, SIDE), 3, stride=1, padding=1)
            inside |= region / region.max() > 0.8
        shares.append(inside.float().mean().item())
        return torch.where(inside, edit, source)

    arguments = unet, start, start, contexts(sd, REFINED), STEPS, GUIDANCE
    pair = eager.sample_pair(*arguments, hook, after=after)
    assert all(0.05 < share < 0.95 for share in shares), shares
    check(within, f"blend by {blend}", found, pair, eager.sample_pair(*arguments, WordMaps(refined))[1])


@pytest.mark.parametrize("source_prompt", [SOURCE, "", None])
def test_masactrl(networks, picture_latents, within, source_prompt):
    sd, unet = networks
    found, _ = run("masactrl", sd, picture_latents, REFINED, source_prompt, first_step=2)
    start = eager.ddim_inversion(unet, picture_latents, sd.embed(source_prompt or ""), STEPS)[-1]
    arguments = unet, start, start, contexts(sd, REFINED, source_prompt or ""), STEPS, GUIDANCE
    pair = eager.sample_pair(*arguments, mutual)
    uncontrolled = eager.sample_pair(*arguments, UNCONTROLLED)[1]
    check(within, f"masactrl, source prompt {source_prompt!r}", found, pair, uncontrolled)


def mutual(step, name, q, k, v):
    """Rows 1 and 3, the edit's, attend to rows 0 and 2, from the third step and the decoder's 32² on."""
    if name.endswith("attn1") and name.startswith(("up_blocks.2", "up_blocks.3")) and step >= 2:
        k, v = k[[0, 0, 2, 2]], v[[0, 0, 2, 2]]
    return eager.maps_of(q, k) @ v


def test_plug_and_play(networks, picture_latents, within):
    sd, unet = networks
    found, _ = run("plug-and-play", sd, picture_latents, REFINED, None, steps=10)
    trajectory = eager.ddim_inversion(unet, picture_latents, sd.embed(""), 10)
    places = [
        f"up_blocks.{block}.attentions.{i}."
        for block, i in ((1, 1), (1, 2), *((b, i) for b in (2, 3) for i in range(3)))
    ]

    @torch.no_grad()
    def reference(self_steps, feature_steps):
        scheduler = eager.diffusers.DDIMScheduler(**eager.SCHEDULER)
        scheduler.set_timesteps(10)
        edit, context = trajectory[-1], torch.cat([sd.embed(""), sd.embed(""), sd.embed(REFINED)])
        for step, timestep in enumerate(scheduler.timesteps):

            def attend(name, q, k, v, step=step):
                if name.endswith("attn1") and name.startswith(tuple(places)) and step < self_steps:
                    q, k = q[[0, 0, 0]], k[[0, 0, 0]]
                return eager.maps_of(q, k) @ v

            def share(module, inputs, output, step=step):
                return output[[0, 0, 0]] if step < feature_steps else output

            eager.attend_with(unet, attend)
            handle = unet.up_blocks[1].resnets[1].conv2.register_forward_hook(share)
            batch = torch.cat([trajectory[-1 - step], edit, edit])
            _, uncond, cond = unet(batch, timestep, context).sample.chunk(3)
            handle.remove()
            edit = scheduler.step(uncond + GUIDANCE * (cond - uncond), timestep, edit).prev_sample
        return edit

    edit = reference(5, 8)
    check(within, "plug-and-play", found, [edit], reference(0, 0))
    assert all(error(part, edit) > 100 * LIMIT for part in (reference(0, 8), reference(5, 0)))  # each matters


def test_negative_prompt(networks, picture_latents, within):
    sd, unet = networks
    found, _ = run("negative-prompt", sd, picture_latents, REFINED)
    start = eager.ddim_inversion(unet, picture_latents, sd.embed(SOURCE), STEPS)[-1]
    arguments = unet, start, start, contexts(sd, REFINED, uncond=SOURCE), STEPS, GUIDANCE
    pair = eager.sample_pair(*arguments, WordMaps(refined))
    check(within, "negative-prompt", found, pair, eager.sample_pair(*arguments, UNCONTROLLED)[1])


@pytest.mark.parametrize("editor_name", ["p2p", "masactrl"])
def test_direct(networks, picture_latents, within, editor_name):
    """The source row is put back on its own inversion after every step."""
    sd, unet = networks
    found, _ = run("direct", sd, picture_latents, REFINED, editor=editor_name, first_step=2)
    trajectory = eager.ddim_inversion(unet, picture_latents, sd.embed(SOURCE), STEPS)
    hook = WordMaps(refined) if editor_name == "p2p" else mutual
    arguments = unet, trajectory[-1], trajectory[-1], contexts(sd, REFINED), STEPS, GUIDANCE
    pair = eager.sample_pair(*arguments, hook, replay=trajectory[-2::-1])
    check(within, f"direct, {editor_name}", found, pair, eager.sample_pair(*arguments, hook)[1])
    assert torch.equal(found["source"], picture_latents)


def test_null_text(networks, picture_latents, within):
    sd, unet = networks
    found, job = run("null-text", sd, picture_latents, REFINED, solver="adam", inner_steps=3)
    trajectory = eager.ddim_inversion(unet, picture_latents, sd.embed(SOURCE), STEPS)
    null, source, target = (sd.embed(text) for text in ("", SOURCE, REFINED))
    tuned = eager.null_text(unet, trajectory, null, source, STEPS, GUIDANCE, 3, 1e-5, 2e-5)
    nulls, replay = [e for e, _ in tuned], [z for _, z in tuned]
    kept = job.kept.items("null embeddings")
    # Adam makes a whole step of a gradient whose sign is rounding's: what counts is where the embeddings lead
    within("null-text: the embeddings", error(torch.cat([e for e, *_ in kept]), torch.cat(nulls)), 10 * LIMIT)
    within("null-text: where they lead", error(torch.cat([z for _, z, _ in kept]), torch.cat(replay)), LIMIT)
    assert error(null, nulls[0]) > 100 * LIMIT

    def sample(context):
        start = trajectory[-1]
        return eager.sample_pair(unet, start, start, context, STEPS, GUIDANCE, WordMaps(refined), replay)

    pair = sample(lambda step: torch.cat([nulls[step], nulls[step], source, target]))
    check(within, "null-text", found, pair, sample(contexts(sd, REFINED))[1])
    assert torch.equal(found["reconstruction"], kept[-1].latents)
