"""Makes the shipped weights from nothing but the drawn world, and measures them.

python -m minibaret.miniature train clip|vae|unet --hours H [--resume]
python -m minibaret.miniature measure [--scenes N] [--edits N] [--distorted N] [--keep FILE] [--json]
python -m minibaret.miniature curves [-o FILE]
python -m minibaret.miniature pictures
python -m minibaret.miniature sweep [--kind KIND] [--scenes N] [--settings FILE | --random N] [--keep FILE]
"""

import argparse
import json
import signal
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from ..errors import InputError
from ..weights import MINIATURE_FOLDER
from .world.tasks import KINDS

TRAINED = Path("runs/weights")  # never the shipped ones, unless somebody says so
KEEPING = "with --keep FILE, what was scored is in the file, and the same command goes on"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m minibaret.miniature", description="Train the miniature, measure it, find its defaults."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("train", help="train one stage, in the order clip, vae, unet")
    command.add_argument("stage", choices=("clip", "vae", "unet"))
    command.add_argument("--hours", type=float, required=True, help="training time in all, earlier runs included")
    command.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    command.add_argument("--start", type=Path, metavar="FOLDER", help="weights that a new run begins with")
    command.add_argument("--workers", type=_count, default=2, help="processes, one thread each (default 2)")
    command.add_argument("--scenes", type=_count, default=20_000, help="pictures in the training set (default 20000)")
    command.add_argument("--runs", type=Path, default=Path("runs"), help="checkpoints, logs, samples (default runs/)")
    command.add_argument("--weights", type=Path, default=TRAINED, help="where the result goes (default %(default)s)")
    command.set_defaults(run=_train, left="--resume goes on from the last checkpoint, where there is one")

    command = commands.add_parser("measure", help="the whole table: networks and edits on held-out scenes")
    command.add_argument("--scenes", type=_count, default=200, help="for the networks by themselves (default 200)")
    command.add_argument("--edits", type=_count, default=200, help="scenes of each kind of edit (default 200)")
    command.add_argument("--distorted", type=_count, metavar="N", help="scenes per distortion (default: as --edits)")
    command.add_argument("--json", action="store_true", help="print the table as one JSON line last")
    _add_workers(command)
    command.set_defaults(run=_measure, left=KEEPING)

    command = commands.add_parser("sweep", help="score settings on scenes kept for that")
    command.add_argument("--kind", choices=KINDS, default="posture", help="what is edited (default %(default)s)")
    command.add_argument("--scenes", type=_count, default=24, help="edits per setting; fewer tell little (default 24)")
    which = command.add_mutually_exclusive_group()
    which.add_argument("--settings", type=Path, metavar="FILE", help="a JSON list of settings to try, or sweep.json")
    which.add_argument("--random", type=_count, metavar="N", help="try N at random; without, one change at a time")
    command.add_argument("--seed", type=int, default=0, help="of --random (default 0)")
    _add_workers(command)
    command.set_defaults(run=_sweep, left=KEEPING)

    command = commands.add_parser("curves", help="draw the training logs, or what is kept of them beside the weights")
    command.add_argument("-o", "--output", type=Path, default=Path("curves.png"), help="default %(default)s")
    command.add_argument("--runs", type=Path, default=Path("runs"), help="where the logs are (default runs/)")
    command.add_argument(
        "--weights", type=Path, default=TRAINED, help="where curves.json is kept (default %(default)s)"
    )
    command.set_defaults(run=_curves, left="nothing was drawn")

    command = commands.add_parser("pictures", help="draw the card's pictures anew: samples, edits, curves")
    command.add_argument("--folder", type=Path, help="where they go (default: examples/ beside the weights)")
    command.add_argument("--runs", type=Path, help="logs to bring curves.json up to date with (default: none)")
    command.add_argument("--workers", type=_count, default=2, help="processes, one thread each (default 2)")
    command.add_argument("--weights", type=Path, default=MINIATURE_FOLDER)
    command.set_defaults(run=_pictures, left="the pictures that were done are there")

    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exit ends the workers, a bare signal does not
    try:
        options.run(options)
    except InputError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except BrokenProcessPool:
        parser.error(f"a worker process was killed, probably because memory ran out; {options.left}")
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: stopped; {options.left}\n")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number, at least 1, was wanted, got {text!r}")
    return int(text)


def _add_workers(command: argparse.ArgumentParser) -> None:
    command.add_argument("--workers", type=_count, default=2, help="processes, one thread each (default 2)")
    command.add_argument("--keep", type=Path, metavar="FILE", help="scores to go on with, of this code: JSON lines")
    command.add_argument("--weights", type=Path, default=MINIATURE_FOLDER)


def _train(options: argparse.Namespace) -> None:
    from .training.loop import check_run, train
    from .training.stages import find, prepare

    stage, (runs, weights, scenes) = find(options.stage), (options.runs, options.weights, options.scenes)
    check_run(stage, runs, options.hours, options.workers, options.resume, options.start)
    prepare(options.stage, runs, weights, scenes, options.start)
    arguments = (runs, weights, scenes)
    train(stage, arguments, options.hours, runs, weights, options.workers, options.resume, options.start)


def _measure(options: argparse.Namespace) -> None:
    from ..loading import load
    from ..progress import ProgressBars
    from ..weights.folder import load_image_encoder
    from .edits import Kept
    from .table import as_json, as_text, table
    from .world.fingerprint import fingerprint

    distorted = options.edits if options.distorted is None else options.distorted
    if distorted > options.edits:
        raise InputError(f"--distorted must be at most --edits, got {distorted} and {options.edits}")
    editor, tower = load(options.weights, "cpu"), load_image_encoder(options.weights)
    kept = Kept(options.keep, fingerprint(options.weights))
    counts = (options.scenes, options.edits, distorted)
    with ProgressBars() as bars:
        rows = table(editor, tower, options.weights, *counts, kept, options.workers, bars.count)
    print(as_text(rows))
    if options.json:
        print(json.dumps({"weights": kept.fingerprint, "table": as_json(rows)}))


def _sweep(options: argparse.Namespace) -> None:
    from ..loading import load
    from ..progress import ProgressBars
    from ..weights.folder import read_config
    from .edits import Kept
    from .sweep import at_random, listed, one_at_a_time, sweep
    from .world.fingerprint import fingerprint
    from .world.tasks import KIND_SETTINGS

    read_config(options.weights)  # says so where the weights are no minibaret folder
    editor, kept = load(options.weights, "cpu"), Kept(options.keep, fingerprint(options.weights))
    if options.settings:
        tried = listed(options.settings, options.kind, kept.fingerprint)
    elif options.random:
        tried = at_random(options.random, options.seed)
    else:
        tried = one_at_a_time(editor.settings(**KIND_SETTINGS[options.kind]))
    scenes, workers = options.scenes, options.workers
    with ProgressBars() as bars:
        lines = sweep(editor, options.weights, options.kind, tried, scenes, kept, workers, bars.count)
    for line in lines:
        print(json.dumps(line))


def _curves(options: argparse.Namespace) -> None:
    from ..images import check_writable, write_image
    from .curves import draw_curves, keep_curves

    check_writable(options.output, force=True)
    curves = keep_curves(options.runs, options.weights / "curves.json")
    if not curves:
        raise InputError(f"there is no training log in {options.runs}, and no curves.json in {options.weights}")
    write_image(draw_curves(curves), options.output)


def _pictures(options: argparse.Namespace) -> None:
    from ..images import check_writable, write_image
    from ..progress import ProgressBars
    from .pictures import card_pictures

    folder = options.folder or options.weights / "examples"
    check_writable(folder / "samples.png", force=True)
    with ProgressBars() as bars:
        for name, picture in card_pictures(options.weights, options.runs, options.workers, bars.count):
            write_image(picture, folder / name)


if __name__ == "__main__":
    main()
