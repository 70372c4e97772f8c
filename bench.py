"""Measurements that the README reports, each a sub-command: a card of what ran where, a table, one line of JSON.

python bench.py attention   attention whose rows take from one another against plain, layer by layer
python bench.py unet        one forward with and without injection (--weights sd15-random)
python bench.py edit        the edit stage against the naive six rows, with plain attention and with stored maps
python bench.py tune        an inner iteration of target-text inversion against null-text inversion, three ways
python bench.py forward     one forward against diffusers on the same weights
python bench.py total       a whole edit, and null-text inversion with prompt-to-prompt as published: parts times counts
python bench.py memory      peak memory of a whole edit (--weights sd15-random --dtype bfloat16 --limit 1G; --table)
python bench.py gpu         all that a first run on a GPU should settle, in minutes (--dry-run: on the CPU, tiny)
"""

import argparse
import importlib
import json
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, network: bool = True, rounds: int | None = None, profile: bool = True):
        """A measurement and the options that most have. rounds: None where the network's size decides."""
        command = commands.add_parser(name)
        command.add_argument("--device", help="auto, cpu, cuda, cuda:1, …, mps")
        command.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="default float16 on CUDA")
        command.add_argument("--json", action="store_true", help="print one line of JSON last")
        if network:
            command.add_argument("--weights", default="miniature", help="a path, miniature, (miniature|sd15)-random")
            command.add_argument(
                "--size", type=int, help="pixels, the side of the picture; the model's own if not given"
            )
        if profile:
            default = "15, few for a slow network" if rounds is None else rounds
            command.add_argument("--rounds", type=int, default=rounds, help=f"default {default}")
            command.add_argument("--trace", type=Path, help="write a Chrome trace of the same calls, and print its top")
        command.set_defaults(run=lambda options: measure(name, options))
        return command

    command = add("attention", network=False, rounds=9)
    command.add_argument("--model", choices=("sd15", "miniature"), default="sd15", help="whose shapes, default sd15")
    command.add_argument("--sites", nargs="+", metavar="SITE", help="such as self-4096 cross-4096; all if not given")
    command.add_argument("--rows", nargs="+", type=int, choices=(2, 3, 6), default=[2, 3, 6], help="default all")
    command.add_argument("--attention", default="auto", help="implementation that injects: auto, torch, triton")
    command.add_argument("--memory", type=float, default=6, help="GB that materialised maps may take, default 6")
    command.add_argument("--predict", choices=("h100", "h200", "a100"), help="also print the roofline's ratio there")
    add("unet", rounds=3)
    command = add("edit", rounds=1)
    command.add_argument("--steps", type=int, help="default 50, or 3, one of each kind, for a slow network")
    command = add("tune")
    against = ("both", "one", "maps")
    command.add_argument("--against", nargs="+", choices=against, default=against, help="diffusers' ways, default all")
    command.set_defaults(dtype="float32")
    command = add("forward")
    command.add_argument("--batch", type=int, default=2, help="rows, default 2")
    command = add("total", profile=False)
    command.add_argument("--rounds", type=int, help="of each kind of step, the first not counted; default 2")
    command.set_defaults(dtype="auto")
    command = add("memory", profile=False)
    command.add_argument("--limit", nargs="+", default=[], help="limits such as 4G, or none; default none")
    command.add_argument(
        "--table", action="store_true", help="eight edits, and whether the estimate holds within 10 %%"
    )
    command.add_argument("--times", action="store_true", help="instead, what streamed weights cost in time")
    command.add_argument("--files", type=Path, help="folder to write random weights to, or that has them; 6.4 GB")
    command = commands.add_parser("gpu")
    command.add_argument("--minutes", type=float, default=8, help="at most, default 8")
    command.add_argument("-o", "--output", type=Path, required=True, help="folder for gpu.json, report.md and log.txt")
    command.add_argument("--dry-run", action="store_true", help="the same on the CPU, with tiny shapes")
    command.set_defaults(run=lambda options: measure("gpu", options))
    for name in ("tune", "memory", "gpu"):  # a part, in a process of its own, for the measurement alone
        command = commands.add_parser(f"{name}-once")
        command.add_argument("values", nargs="*")
        command.set_defaults(run=lambda options, name=name: print(json.dumps(subject(name, "once")(*options.values))))
    options = parser.parse_args()
    try:
        options.run(options)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"bench.py: {error}", file=sys.stderr)
        return 2
    return 0


def measure(name: str, options: argparse.Namespace) -> None:
    if name != "gpu":
        subject("common", "complete")(options)
    subject(name, "bench")(options)


def subject(name: str, function: str):
    """A function of a file of minibaret.bench, which is imported only now."""
    return getattr(importlib.import_module(f"minibaret.bench.{name}"), function)


if __name__ == "__main__":
    sys.exit(main())
