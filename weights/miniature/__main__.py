"""Makes the shipped weights from nothing but the drawn world, and measures them.

python -m minibaret.weights.miniature train clip|vae|unet --hours H [--resume]
python -m minibaret.weights.miniature measure [--scenes N] [--edits N] [--seeds sweep] [--keep FILE] [--json]
python -m minibaret.weights.miniature pictures [NAME …]
"""

import argparse
import json
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from minibaret.errors import InputError
from minibaret.evaluation.scoring import Laboratory, ScoreFile, Scorer
from minibaret.images import check_writable, write_image
from minibaret.loading import load
from minibaret.process import STOPPED, stopped_by_signals
from minibaret.progress import ProgressBars
from minibaret.weights import MINIATURE_FOLDER

from .cases import SEEDS
from .networks import kept_scores
from .pictures import PICTURES
from .table import as_json, as_text, edit_rows, network_rows
from .training.loop import check_run, train
from .training.stages import STAGES, prepare
from .world.fingerprint import fingerprint

TRAINED = Path("runs/weights")  # never the shipped ones, unless somebody says so
KEEPING = "with --keep FILE, what was scored is in the file, and the same command goes on"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m minibaret.weights.miniature", description="Train the miniature, measure it, draw what it does."
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

    command = commands.add_parser("measure", help="the table: networks, calibration, quality")
    command.add_argument("--scenes", type=_count, default=200, help="for the networks by themselves (default 200)")
    command.add_argument("--edits", type=_none_or_more, default=200, help="of a kind by each method (default 200)")
    command.add_argument("--json", action="store_true", help="print the table as one JSON line last")
    command.add_argument("--seeds", choices=SEEDS, default="held-out", help="scenes (default %(default)s)")
    command.add_argument("--workers", type=_count, default=2, help="processes, one thread each (default 2)")
    command.add_argument("--keep", type=Path, metavar="FILE", help="scores to go on with, of this code: JSON lines")
    command.add_argument("--weights", type=Path, default=MINIATURE_FOLDER)
    command.set_defaults(run=_measure, left=KEEPING)

    command = commands.add_parser("pictures", help="draw the card's pictures anew")
    command.add_argument("names", nargs="*", help=f"{', '.join(PICTURES)} (default: all)")
    command.add_argument("--folder", type=Path, help="where they go (default: examples/ beside the weights)")
    command.add_argument("--runs", type=Path, help="logs to bring curves.json up to date with (default: none)")
    command.add_argument("--weights", type=Path, default=MINIATURE_FOLDER)
    command.set_defaults(run=_pictures, left="the pictures that were done are there")

    options = parser.parse_args()
    try:
        with stopped_by_signals():
            options.run(options)
    except InputError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except BrokenProcessPool:
        parser.error(f"a worker process was killed, probably because memory ran out; {options.left}")
    except KeyboardInterrupt:
        parser.exit(STOPPED, f"{parser.prog}: stopped; {options.left}\n")


def _count(text: str, least: int = 1) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"a whole number, at least {least}, was wanted, got {text!r}")
    return int(text)


def _none_or_more(text: str) -> int:
    return _count(text, least=0)


def _train(options: argparse.Namespace) -> None:
    stage, (runs, weights, scenes) = STAGES[options.stage], (options.runs, options.weights, options.scenes)
    check_run(stage, runs, options.hours, options.workers, options.resume, options.start)
    prepare(options.stage, runs, weights, scenes, options.start)
    arguments = (runs, weights, scenes)
    train(stage, arguments, options.hours, runs, weights, options.workers, options.resume, options.start)


def _measure(options: argparse.Namespace) -> None:
    editor, seeds = load(options.weights, "cpu"), SEEDS[options.seeds]
    kept = ScoreFile(options.keep, fingerprint(options.weights))
    with ProgressBars() as bars:
        scorer = Scorer(Laboratory((options.weights, "cpu")), kept, options.workers, bars.count)
        rows = network_rows(editor, options.weights, kept_scores(scorer, seeds[: options.scenes]))
        rows += edit_rows(editor, scorer, seeds[: options.edits])
    print(as_text(rows))
    if options.json:
        print(json.dumps({"weights": kept.fingerprint, "seeds": options.seeds, "rows": as_json(rows)}))


def _pictures(options: argparse.Namespace) -> None:
    folder = options.folder or options.weights / "examples"
    for name in options.names or PICTURES:
        if name not in PICTURES:
            raise InputError(f"a picture must be one of {', '.join(PICTURES)}, got {name!r}")
        check_writable(folder / f"{name}.png", force=True)
        more = {"runs": options.runs} if name == "curves" else {}
        with ProgressBars() as bars:
            write_image(PICTURES[name](options.weights, bars.count, **more), folder / f"{name}.png")


if __name__ == "__main__":
    main()
