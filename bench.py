"""Measurements that the README reports, each a sub-command: a card of what ran where, a table, one line of JSON.

python bench.py attention   injected attention against plain, site by site (--model miniature: in seconds)
python bench.py unet        one forward with and without injection (--weights sd15-random)
python bench.py memory      peak memory of a whole edit, without a limit and with (--weights sd15-random --limit 4G)
python bench.py load        time and peak memory of loading Stable Diffusion 1.5, against diffusers
"""

import argparse
import contextlib
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LOADS = [  # name in the table, file below the folder of files, variant, dtype stored, dtype wanted
    ("folder, float32 → float32", "folder", "", "float32", "float32"),
    ("folder, float32 → float16", "folder", "", "float32", "float16"),
    ("folder, float16 → float16", "folder", "fp16", "float16", "float16"),
    ("single file, float32 → float32", "single.safetensors", "", "float32", "float32"),
    ("single file, float32 → float16", "single.safetensors", "", "float32", "float16"),
]
SD15_PARAMETERS = 859_520_964 + 83_653_863 + 123_060_480


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("load", help="time and peak memory of loading, against diffusers")
    command.add_argument("--files", type=Path, help="folder to write the random weights to, or that has them; 11 GB")
    command.add_argument("--repeats", type=int, default=5, help="runs of each, interleaved; default %(default)s")
    command.add_argument("--json", action="store_true", help="print the figures as one JSON line last")
    command.set_defaults(run=load)
    command = commands.add_parser("load-once")  # one run of `load`, in a process of its own
    command.add_argument("values", nargs=4)
    command.set_defaults(run=lambda options: print(json.dumps(load_once(*options.values))))
    command = add_measurement(commands, "attention", "injected attention against plain, site by site")
    command.add_argument("--model", choices=("sd15", "miniature"), default="sd15", help="whose shapes, default sd15")
    command.add_argument("--sites", nargs="+", metavar="SITE", help="such as self-4096 cross-4096; all if not given")
    command.add_argument("--rows", nargs="+", type=int, choices=(2, 3, 6), default=[2, 3, 6], help="default all")
    command.add_argument("--attention", default="auto", help="implementation that injects: auto, torch, triton")
    command.add_argument("--memory", type=float, default=6, help="GB that materialised maps may take, default 6")
    command.add_argument("--rounds", type=int, default=9, help="default %(default)s")
    command.add_argument("--predict", choices=("h100", "a100"), help="also print the roofline's ratio on this GPU")
    command.add_argument("--plot", type=Path, help="draw the ratios to a picture file")
    command = add_measurement(commands, "unet", "one forward with and without injection")
    command.add_argument("--weights", default="miniature", help="a folder, miniature, miniature-random, sd15-random")
    command.add_argument("--size", type=int, help="pixels, the side of the picture; the model's own if not given")
    command.add_argument("--rounds", type=int, default=3, help="default %(default)s")
    command = commands.add_parser("memory", help="peak memory of a whole edit, without a limit and with")
    command.add_argument("--device", help="cpu, cuda, cuda:1, …")
    command.add_argument("--json", action="store_true", help="print one line of JSON last")
    command.set_defaults(run=lambda options: measure("memory", options), dtype=None)
    command.add_argument("--weights", default="miniature", help="a file or folder, miniature, sd15-random")
    command.add_argument("--size", type=int, help="pixels, the side of the picture; the model's own if not given")
    command.add_argument("--limit", nargs="+", default=[], help="limits such as 4G, beside none")
    command.add_argument("--files", type=Path, help="folder to write sd15-random to, or that has it; 4.3 GB")
    options = parser.parse_args()
    return options.run(options) or 0


def add_measurement(commands, name: str, what: str) -> argparse.ArgumentParser:
    """A sub-command that minibaret.bench measures, with the options that all of those have."""
    command = commands.add_parser(name, help=what)
    command.add_argument("--device", help="cpu, cuda, cuda:1, …")
    command.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="default float16 on CUDA")
    command.add_argument("--json", action="store_true", help="print one line of JSON last")
    command.add_argument("--trace", type=Path, help="write a Chrome trace of the same calls")
    command.set_defaults(run=lambda options: measure(name, options))
    return command


def measure(name: str, options: argparse.Namespace) -> int:
    from minibaret.bench import common

    try:
        common.complete(options)
        if name == "attention":
            from minibaret.bench.attention import bench_attention

            bench_attention(options)
        elif name == "memory":
            from minibaret.bench.memory import bench_memory

            bench_memory(options)
        else:
            from minibaret.bench.unet import bench_unet

            bench_unet(options)
    except (ValueError, RuntimeError) as error:
        print(f"bench.py: {error}", file=sys.stderr)
        return 2
    return 0


def load(options: argparse.Namespace) -> None:
    """Both load the same files with the same dtype: text encoder, VAE, UNet and tokenizer, onto the CPU.

    Seconds are from the call to the model ("load"), and until one number of every page of every weight was read too
    ("ready"), since mapped weights are only fetched when they are used; "processor" is the processor's time until then,
    which other work on the machine disturbs least. Memory is the highest resident set of the
    process during both, file-backed pages included, less the resident set after the imports; each page counts once.
    Files are in the page cache.
    """
    print(card("diffusers", "transformers", "accelerate"))
    with contextlib.ExitStack() as stack:
        files = options.files or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="minibaret-")))
        write_files(files)
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
    if options.json:
        print(json.dumps({"load": rows}))


def load_once(who: str, path: str, variant: str, dtype: str) -> dict:
    """Loads once in this process, and measures."""
    import torch

    kind, variant = getattr(torch, dtype), None if variant == "-" else variant
    tokenizer = Path(path).parent / "folder"
    if who == "minibaret":
        from minibaret.weights import load_model

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
    Path("/proc/self/clear_refs").write_text("5")  # starts the peak afresh
    start, processor = time.perf_counter(), time.process_time()
    networks = work()
    loaded = time.perf_counter()
    parameters = [p for network in networks for p in network.parameters()]
    assert sum(p.numel() for p in parameters) == SD15_PARAMETERS and all(p.dtype == kind for p in parameters)
    sum(p.detach().flatten()[:: 4096 // p.element_size()].float().sum().item() for p in parameters)
    ready, processor = time.perf_counter() - start, time.process_time() - processor
    peak = (resident("VmHWM") - before) / 1e9
    return {"load": loaded - start, "ready": ready, "processor": processor, "peak_gb": peak}


def write_files(files: Path) -> None:
    """Random weights of Stable Diffusion 1.5: a Hugging Face folder with a variant, and a single file."""
    import torch

    from minibaret.models.configs import SD15
    from tests.checkpoints import (
        full_merges,
        ldm_tensors,
        random_weights,
        write_configs,
        write_hugging_face,
        write_single,
    )

    if (files / "single.safetensors").is_file():
        return
    print("writing 11 GB of random weights …", file=sys.stderr)
    folder, weights = write_configs(files / "folder", SD15, full_merges()), random_weights(SD15)
    write_hugging_face(folder, weights)
    write_hugging_face(folder, weights, variant="fp16", dtype=torch.float16)
    write_single(files / "single.safetensors", ldm_tensors(weights))


def card(*packages: str) -> str:
    """The machine and the versions, a line each."""
    lines = [f"{'processor':<14}{_processor()}, {os.cpu_count()} cores", f"{'system':<14}{platform.platform()}"]
    lines += [f"{'python':<14}{platform.python_version()}"]
    for package in ("torch", "safetensors", "minibaret", *packages):
        with contextlib.suppress(PackageNotFoundError):
            lines.append(f"{package:<14}{version(package)}")
    return "\n".join(lines)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(": ")[2]
    return platform.processor() or platform.machine()


def in_process(*arguments: str) -> dict:
    """Runs a sub-command of this file in a process of its own; the last line it prints is its result."""
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"bench.py {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def resident(what: str) -> int:
    """Bytes of a line of /proc/self/status: VmRSS, the resident set now; VmHWM, its peak."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{what}:")[2].split()[0]) * 1024


def summary(results: list[dict]) -> dict:
    """Median, lowest and highest of every figure."""
    columns = {key: [result[key] for result in results] for key in results[0]}
    return {
        key: {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}
        for key, values in columns.items()
    }


def shown(figure: dict) -> str:
    return f"{figure['median']:.2f} ({figure['lowest']:.2f}–{figure['highest']:.2f})"


if __name__ == "__main__":
    sys.exit(main())
