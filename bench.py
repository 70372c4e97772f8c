"""Measurements that the README reports, each a sub-command: a card of what ran where, a table, one line of JSON.

python bench.py attention   injected attention against plain, site by site (--model miniature: in seconds)
python bench.py unet        one forward with and without injection (--weights sd15-random)
python bench.py edit        the edit stage against the naive six rows, with plain attention and with stored maps
python bench.py tune        an inner iteration of target-text inversion against null-text inversion, three ways
python bench.py forward     one forward against diffusers on the same weights
python bench.py memory      peak memory of a whole edit, without a limit and with (--weights sd15-random --limit 4G)
python bench.py load        time and peak memory of loading Stable Diffusion 1.5, against diffusers
"""

import argparse
import importlib
import json
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
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
    add_network(command, rounds=3)
    command = add_measurement(commands, "edit", "the edit stage against the naive six rows")
    add_network(command, rounds=1)
    command.add_argument("--steps", type=int, help="default 50, or 3, one of each kind, for a network of SD1.5's size")
    add_profile(command)
    command = add_measurement(commands, "tune", "an inner iteration of inversion against null-text inversion")
    add_network(command, rounds=None)
    names = ("both", "one", "maps")
    command.add_argument("--against", nargs="+", choices=names, default=names, help="diffusers' ways, default all")
    add_profile(command)
    command.set_defaults(dtype="float32")
    add_once(commands, "tune", 5)
    command = add_measurement(commands, "forward", "one forward against diffusers on the same weights")
    add_network(command, rounds=None)
    command.add_argument("--batch", type=int, default=2, help="rows, default %(default)s")
    add_profile(command)
    command = commands.add_parser("load", help="time and peak memory of loading, against diffusers")
    command.add_argument("--files", type=Path, help="folder to write the random weights to, or that has them; 11 GB")
    command.add_argument("--repeats", type=int, default=5, help="runs of each, interleaved; default %(default)s")
    command.add_argument("--json", action="store_true", help="print the figures as one JSON line last")
    command.set_defaults(run=lambda options: measure("load", options), device="cpu", dtype="float32")
    add_once(commands, "load", 4)
    command = commands.add_parser("memory", help="peak memory of a whole edit, without a limit and with")
    command.add_argument("--device", help="cpu, cuda, cuda:1, …")
    command.add_argument("--json", action="store_true", help="print one line of JSON last")
    command.set_defaults(run=lambda options: measure("memory", options), dtype=None)
    command.add_argument("--weights", default="miniature", help="a file or folder, miniature, sd15-random")
    command.add_argument("--size", type=int, help="pixels, the side of the picture; the model's own if not given")
    command.add_argument("--limit", nargs="+", default=[], help="limits such as 4G, beside none")
    command.add_argument("--files", type=Path, help="folder to write sd15-random to, or that has it; 4.3 GB")
    options = parser.parse_args()
    return options.run(options)


def add_measurement(commands, name: str, what: str) -> argparse.ArgumentParser:
    """A sub-command with the options that most of them have."""
    command = commands.add_parser(name, help=what)
    command.add_argument("--device", help="cpu, cuda, cuda:1, …")
    command.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="default float16 on CUDA")
    command.add_argument("--json", action="store_true", help="print one line of JSON last")
    command.add_argument("--trace", type=Path, help="write a Chrome trace of the same calls")
    command.set_defaults(run=lambda options: measure(name, options))
    return command


def add_network(command: argparse.ArgumentParser, rounds: int | None) -> None:
    command.add_argument("--weights", default="miniature", help="a folder, miniature, miniature-random, sd15-random")
    command.add_argument("--size", type=int, help="pixels, the side of the picture; the model's own if not given")
    few = "default 15, few for a network of SD1.5's size" if rounds is None else "default %(default)s"
    command.add_argument("--rounds", type=int, default=rounds, help=few)


def add_profile(command: argparse.ArgumentParser) -> None:
    command.add_argument("--profile", action="store_true", help="also print where the time goes, by operator")


def add_once(commands, name: str, values: int) -> None:
    """One run of a sub-command, in a process of its own; only the sub-command calls it."""
    command = commands.add_parser(f"{name}-once")
    command.add_argument("values", nargs=values)
    command.set_defaults(run=lambda options: print(json.dumps(subject(name, "once")(*options.values))) or 0)


def measure(name: str, options: argparse.Namespace) -> int:
    from minibaret.bench.common import complete

    try:
        complete(options)
        subject(name, "bench")(options)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"bench.py: {error}", file=sys.stderr)
        return 2
    return 0


def subject(name: str, function: str):
    """A function of a file of minibaret.bench, which is imported only now."""
    return getattr(importlib.import_module(f"minibaret.bench.{name}"), function)


if __name__ == "__main__":
    sys.exit(main())
