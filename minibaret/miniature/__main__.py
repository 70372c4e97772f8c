"""`python -m minibaret.miniature train clip|vae|unet`: makes the shipped weights, from nothing but the drawn world."""

import argparse
from functools import partial
from pathlib import Path

from .loop import train
from .stages import STAGES, build, prepare


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m minibaret.miniature", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train one stage, in the order clip, vae, unet")
    training.add_argument("stage", choices=tuple(STAGES))
    training.add_argument("--hours", type=float, required=True, help="training time in all, earlier runs included")
    training.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    training.add_argument("--workers", type=int, default=2, help="processes, one thread each (default 2)")
    training.add_argument("--scenes", type=int, default=20_000, help="pictures in the training set (default 20000)")
    training.add_argument("--runs", type=Path, default=Path("runs"), help="checkpoints, logs, samples (default runs/)")
    training.add_argument("--weights", type=Path, default=Path("weights/miniature"), help="where the result goes")
    arguments = parser.parse_args()
    prepare(arguments.stage, arguments.runs, arguments.weights, arguments.scenes)
    make = partial(build, arguments.stage, arguments.runs, arguments.weights, arguments.scenes)
    train(make, arguments.hours, arguments.runs, arguments.weights, arguments.workers, arguments.resume)


if __name__ == "__main__":
    main()
