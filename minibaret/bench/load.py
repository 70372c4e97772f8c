"""Time and peak memory of loading Stable Diffusion 1.5, against diffusers."""

import argparse
import contextlib
import gc
import statistics
import tempfile
import time
from pathlib import Path

import torch

from ..weights import load_model
from . import common
from .random_weights import RANDOM, write_layouts

LOADS = [  # name in the table, file below the folder of files, variant, dtype wanted
    ("folder, float32 → float32", "folder", "-", "float32"),
    ("folder, float32 → float16", "folder", "-", "float16"),
    ("folder, float16 → float16", "folder", "fp16", "float16"),
    ("single file, float32 → float32", "single.safetensors", "-", "float32"),
    ("single file, float32 → float16", "single.safetensors", "-", "float16"),
]


def bench(options: argparse.Namespace) -> None:
    """Both load the same files with the same dtype: text encoder, VAE, UNet and tokenizer, onto the CPU.

    Seconds are from the call to the model ("load"), and until one number of every page of every weight was read too
    ("ready"), since mapped weights are only fetched when they are used; "processor" is the processor's time until then,
    which other work on the machine disturbs least. Memory is the highest resident set of the process during both,
    file-backed pages included, less the resident set after the imports; each page counts once. Files are in the page
    cache.
    """
    packages = ("safetensors", "diffusers", "transformers", "accelerate")
    facts = common.card(options, packages, weights=options.weights, dtype="as each line says", repeats=options.repeats)
    found, lines = {}, []
    with contextlib.ExitStack() as stack:
        files = options.files or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="minibaret-")))
        write_layouts(files, RANDOM[options.weights])
        for name, file, variant, dtype in LOADS:
            runs: dict[str, list[dict]] = {"minibaret": [], "diffusers": []}
            for _ in range(options.repeats + 1):
                for who, results in runs.items():
                    results.append(
                        common.in_process("load-once", who, str(files / file), variant, dtype, options.weights)
                    )
            found[name] = {who: summary(results[1:]) for who, results in runs.items()}  # the first fills the page cache
            lines += [{"what": name, "by": who, **figures} for who, figures in found[name].items()]
    names = {"load": "load, s", "ready": "ready, s", "processor": "processor, s", "peak_gb": "peak memory, GB"}
    columns = {
        title: f"{{{key}[median]:.2f}} ({{{key}[lowest]:.2f}}–{{{key}[highest]:.2f}})" for key, title in names.items()
    }
    print(common.table(lines, {"what": "{what}", "by": "{by}"} | columns))
    print("medians (lowest–highest), runs of both interleaved")
    common.finish(options, {"card": facts, "load": found})


def once(who: str, path: str, variant: str, dtype: str, weights: str = "sd15-random") -> dict:
    """Loads once in this process, and measures. variant: "-" for none."""
    kind, variant = getattr(torch, dtype), None if variant == "-" else variant
    folder = Path(path).parent / "folder"  # where a single file's tokenizer and configs are
    if who == "minibaret":

        def work():
            return load_model(Path(path), "cpu", kind, variant, folder, RANDOM[weights])
    else:
        from diffusers import StableDiffusionPipeline
        from diffusers.utils import logging
        from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401, imported before the clock starts
        from transformers.utils import logging as transformers_logging

        logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        settings = {"torch_dtype": kind, "safety_checker": None, "feature_extractor": None, "local_files_only": True}

        def work():
            if path.endswith(".safetensors"):
                return StableDiffusionPipeline.from_single_file(path, config=str(folder), **settings)
            return StableDiffusionPipeline.from_pretrained(path, variant=variant, **settings)

    gc.collect()
    before = common.resident("VmRSS")
    common.forget_peak()
    start, processor = time.perf_counter(), time.process_time()
    model = work()
    loaded = time.perf_counter()
    networks = (model.unet, model.vae, model.text_encoder)
    parameters = [parameter for network in networks for parameter in network.parameters()]
    if any(parameter.dtype != kind for parameter in parameters):
        raise RuntimeError(f"weights of {dtype} were wanted, but {who} read others")
    sum(p.detach().flatten()[:: 4096 // p.element_size()].float().sum().item() for p in parameters)
    ready, processor = time.perf_counter() - start, time.process_time() - processor
    peak = (common.resident("VmHWM") - before) / 1e9
    return {"load": loaded - start, "ready": ready, "processor": processor, "peak_gb": peak}


def summary(results: list[dict]) -> dict:
    """Median, lowest and highest of every figure."""
    columns = {key: [result[key] for result in results] for key in results[0]}
    return {
        key: {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}
        for key, values in columns.items()
    }
