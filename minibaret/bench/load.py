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
from .common import card, finish, forget_peak, in_process, resident
from .random_weights import write_layouts

LOADS = [  # name in the table, file below the folder of files, variant, dtype stored, dtype wanted
    ("folder, float32 → float32", "folder", "", "float32", "float32"),
    ("folder, float32 → float16", "folder", "", "float32", "float16"),
    ("folder, float16 → float16", "folder", "fp16", "float16", "float16"),
    ("single file, float32 → float32", "single.safetensors", "", "float32", "float32"),
    ("single file, float32 → float16", "single.safetensors", "", "float32", "float16"),
]
SD15_PARAMETERS = 859_520_964 + 83_653_863 + 123_060_480


def bench(options: argparse.Namespace) -> None:
    """Both load the same files with the same dtype: text encoder, VAE, UNet and tokenizer, onto the CPU.

    Seconds are from the call to the model ("load"), and until one number of every page of every weight was read too
    ("ready"), since mapped weights are only fetched when they are used; "processor" is the processor's time until then,
    which other work on the machine disturbs least. Memory is the highest resident set of the
    process during both, file-backed pages included, less the resident set after the imports; each page counts once.
    Files are in the page cache.
    """
    packages = ("safetensors", "minibaret", "diffusers", "transformers", "accelerate")
    facts = card(options, packages, dtype="as each line says")
    with contextlib.ExitStack() as stack:
        files = options.files or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="minibaret-")))
        write_layouts(files)
        rows = {}
        for name, file, variant, _, dtype in LOADS:
            runs: dict[str, list[dict]] = {"minibaret": [], "diffusers": []}
            for _ in range(options.repeats + 1):
                for who, results in runs.items():
                    results.append(in_process("load-once", who, str(files / file), variant or "-", dtype))
            rows[name] = {who: summary(results[1:]) for who, results in runs.items()}  # the first fills the page cache
    print(f"\n{options.repeats} runs each, interleaved: median (lowest–highest)\n")
    print("| what | by | load, s | ready, s | processor, s | peak memory, GB | of the weights |")
    print("|---|---|---|---|---|---|---|")
    for (name, *_, dtype), both in zip(LOADS, rows.values()):
        weights = SD15_PARAMETERS * (4 if dtype == "float32" else 2) / 1e9
        for who, row in both.items():
            part = f"{row['peak_gb']['median'] / weights:.0%}"
            print("|", " | ".join([name, who, *(shown(figure) for figure in row.values()), part]), "|")
        ratios = [both["minibaret"][key]["median"] / both["diffusers"][key]["median"] for key in row]
        print("|", " | ".join(["", "ratio", *(f"{ratio:.2f}" for ratio in ratios), ""]), "|")
    finish(options, {"card": facts, "load": rows})


def once(who: str, path: str, variant: str, dtype: str) -> dict:
    """Loads once in this process, and measures."""
    kind, variant = getattr(torch, dtype), None if variant == "-" else variant
    tokenizer = Path(path).parent / "folder"
    if who == "minibaret":

        def work():
            model = load_model(Path(path), "cpu", kind, variant, tokenizer)
            return [model.unet, model.vae, model.text_encoder]
    else:
        from diffusers import StableDiffusionPipeline
        from diffusers.utils import logging
        from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401, imported before the clock starts
        from transformers.utils import logging as transformers_logging

        logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        settings = {"torch_dtype": kind, "safety_checker": None, "feature_extractor": None, "local_files_only": True}
        if path.endswith(".safetensors"):
            settings |= {"config": str(tokenizer)}
            make = StableDiffusionPipeline.from_single_file
        else:
            settings |= {"variant": variant}
            make = StableDiffusionPipeline.from_pretrained

        def work():
            pipeline = make(path, **settings)
            return [pipeline.unet, pipeline.vae, pipeline.text_encoder]

    gc.collect()
    before = resident("VmRSS")
    forget_peak()
    start, processor = time.perf_counter(), time.process_time()
    networks = work()
    loaded = time.perf_counter()
    parameters = [p for network in networks for p in network.parameters()]
    assert sum(p.numel() for p in parameters) == SD15_PARAMETERS and all(p.dtype == kind for p in parameters)
    sum(p.detach().flatten()[:: 4096 // p.element_size()].float().sum().item() for p in parameters)
    ready, processor = time.perf_counter() - start, time.process_time() - processor
    peak = (resident("VmHWM") - before) / 1e9
    return {"load": loaded - start, "ready": ready, "processor": processor, "peak_gb": peak}


def summary(results: list[dict]) -> dict:
    """Median, lowest and highest of every figure."""
    columns = {key: [result[key] for result in results] for key in results[0]}
    return {
        key: {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}
        for key, values in columns.items()
    }


def shown(figure: dict) -> str:
    return f"{figure['median']:.2f} ({figure['lowest']:.2f}–{figure['highest']:.2f})"
