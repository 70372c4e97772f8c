"""A whole edit by BARET, and one by null-text inversion and prompt-to-prompt as these were published, each put together
from a few steps of every kind and how many there are of it."""

import argparse
import copy
import dataclasses
import statistics
from collections import Counter
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from ..editor import defaults_of
from ..loading import automatic_dtype
from ..methods.baret import METHOD
from ..methods.common import Job
from ..pipeline import StableDiffusion
from ..tuning import Tuned
from ..weights.loading import Model
from . import common, tune
from .diffusers_models import DiffusersUNet, import_diffusers
from .edit import PROMPT
from .unet import inputs

OURS, PUBLISHED = "minibaret", "published, on diffusers, float32"
INNER = 10  # gradient passes a time step, at most (Mokady et al. 2022; num_inner_steps in their notebook)
Part = dict[str, object]  # a line of the table: what, how many of it, and milliseconds each


def given(latents: Tensor, target: Tensor, steps: int, tuned: int) -> common.Given:
    """Random numbers in the place of what an inversion has found: its trajectory and the first steps of its tuning."""
    trajectory = [(torch.randn_like(latents),) for _ in range(steps + 1)]
    return common.Given(trajectory=trajectory, target_embeddings=[Tuned(target, latents, torch.zeros(1))] * tuned)


def bench(options: argparse.Namespace) -> None:
    """Both sides tune as long as their knobs let them: random numbers do not come below a loss that would end a time
    step sooner. Published is google/prompt-to-prompt's null_text_w_ptp.ipynb: no weight is frozen, all attention maps
    are written to memory, four rows are sampled. What it does with the maps is not counted, and prompts and pictures
    are coded by our networks on both sides."""
    import_diffusers()
    wanted, options.dtype = options.dtype, torch.float32
    model, side, facts = common.begin(options, many=5, few=2, packages=["diffusers"])
    dtype = wanted or automatic_dtype(model.config, options.device)
    facts["unet_dtype"] = str(dtype).removeprefix("torch.")
    print(f"minibaret's UNet in {facts['unet_dtype']}\n")
    sd = StableDiffusion(model)
    coding = coding_parts(sd, side * model.config.latent_factor)
    theirs = [*coding, *published_parts(model, side, options)]
    if dtype != torch.float32:
        network = copy.deepcopy(model.unet).to(dtype=dtype, memory_format=torch.channels_last)
        sd = StableDiffusion(dataclasses.replace(model, unet=network))
    ours = [*coding, *our_parts(sd, side, options.rounds)]
    lines, totals = [], {}
    for who, parts in ((OURS, ours), (PUBLISHED, theirs)):
        for part in parts:
            part = {"by": who, **part, "seconds": round(part["count"] * part["each_ms"] / 1e3, 4)}
            lines.append(part)
        totals[who] = round(sum(line["seconds"] for line in lines if line["by"] == who), 4)
        lines.append({"by": who, "part": "all", "seconds": totals[who]})
    common.finish(
        options, facts, lines, seconds=totals[OURS], published_seconds=totals[PUBLISHED],
        ratio_to_published=round(totals[OURS] / totals[PUBLISHED], 4),
        parts={line["part"]: line["seconds"] for line in lines if line["by"] == OURS},
    )  # fmt: skip


def coding_parts(sd: StableDiffusion, size: int) -> list[Part]:
    """Prompts to embeddings, a picture to latents and back."""
    picture = Image.effect_noise((size, size), 64).convert("RGB")
    latents = []
    return [
        measured("a prompt embedded", 2, lambda: sd.embed(PROMPT), sd),
        measured("the picture encoded", 1, lambda: latents.append(sd.encode(picture)), sd),
        measured("the picture decoded", 1, lambda: sd.decode(latents[0]), sd),
    ]


def our_parts(sd: StableDiffusion, side: int, rounds: int) -> list[Part]:
    knobs, target = METHOD.knobs_from(defaults_of(sd.config, METHOD)), sd.embed(PROMPT)
    latents = torch.randn(1, sd.config.unet.latent_channels, side, side, device=sd.device)
    inversion = METHOD.invert(sd, Job(latents, PROMPT), knobs)
    tuning = METHOD.invert(sd, Job(latents, PROMPT, kept=given(latents, target, knobs.steps, 0)), knobs)
    parts = [
        measured("a step of the DDIM inversion", knobs.steps, lambda: next(inversion), sd, rounds),
        measured("a time step of target-text inversion", knobs.steps, lambda: next(tuning), sd, rounds),
    ]
    parts[1]["gradient_passes"] = sd.counts.gradient_passes / rounds
    tau = {"self": knobs.first(knobs.self_steps), "cross": knobs.first(knobs.cross_steps)}
    kinds = Counter(tuple(kind for kind in tau if step < tau[kind]) for step in range(knobs.steps))
    for kind, count in kinds.items():  # each as an edit of one step
        flags = {f"{name}_steps": float(name in kind) for name in tau}
        kept = given(latents, target, steps=1, tuned=1)
        editing = METHOD.edit(sd, Job(latents, PROMPT, kept=kept), dataclasses.replace(knobs, steps=1, **flags))
        name = f"a step of the edit, {' and '.join(kind) or 'nothing'} injected"
        parts.append(measured(name, count, lambda editing=editing: next(editing), sd))
    return parts


def published_parts(model: Model, side: int, options: argparse.Namespace) -> list[Part]:
    unet = DiffusersUNet(model, trainable=True)
    tuning = tune.iterations(tune.MAPS, model, unet, side)
    times = [next(tuning) for _ in range(options.rounds)]
    tuning.close()
    unet.zero_grad()
    unet.materialise(True)

    def forward(rows: int) -> float:
        arguments = inputs(model.unet, side, rows)
        with torch.no_grad():
            return common.milliseconds(lambda: unet(*arguments), 1, options.device)

    once, twice, four_times = ([forward(rows) for _ in range(options.rounds)] for rows in (1, 2, 4))
    steps = tune.STEPS
    return [
        part("a step of the DDIM inversion", steps, once),
        part("the prompt's noise, once a time step", steps, once),
        part("a gradient pass of null-text inversion", INNER * steps, times),
        part("a step with what was tuned, two rows", steps, twice),
        part("a step of prompt-to-prompt, four rows", steps, four_times),
    ]


def measured(name: str, count: int, run: Callable[[], object], sd: StableDiffusion, rounds: int = 1) -> Part:
    return part(name, count, [common.milliseconds(run, 1, sd.device) for _ in range(rounds)])


def part(name: str, count: int, times: list[float]) -> Part:
    """The first of several times, when memory is allocated, does not count."""
    return {"part": name, "count": count, "each_ms": round(statistics.median(times[1:] or times), 4)}
