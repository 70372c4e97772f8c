"""The command line: `minibaret edit`, `invert`, `maps`, `evaluate`, `inspect`.

Bad input is one sentence and exit code 2."""

import argparse
import json
import sys
from argparse import BooleanOptionalAction
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import InputError

if TYPE_CHECKING:
    from .editor import Editor

PROG = "minibaret"
# The same names as in miniature/world/tasks.py and distortions.py, which are not imported for a --help.
KINDS = ("posture", "colour", "ground", "animal", "addition")
DISTORTIONS = ("jpeg", "400x300", "1024x768", "shift", "noise", "tint")
OUT_OF_MEMORY = ("out of memory", "allocate memory", "enough memory")  # how PyTorch says it, by device and system


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except InputError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that may not be searched, a name that is too long
        what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or error
        print(f"{PROG}: a file could not be read or written: {what}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        said = "there is not enough memory; --memory LIMIT makes an edit take less, or says how much it needs"
        print(f"{PROG}: {said}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"{PROG}: stopped; {str(stop) or 'nothing was written'}", file=sys.stderr)
        return 130
    return 0


def edit(options: argparse.Namespace) -> None:
    from .images import check_writable, write_image
    from .progress import ProgressBars
    from .sheet import edit_sheet

    outputs = [path for path in (options.output, options.sheet) if path]
    if len(set(outputs)) < len(outputs):
        raise InputError(f"--output and --sheet must be two files, got {options.output} for both")
    for path in outputs:
        check_writable(path, options.force)
    editor, arguments = _prepare(options)
    pictures = ("transition",) if options.sheet else ()
    with ProgressBars() as bars:
        result = editor.edit(options.image, options.text, **arguments, pictures=pictures, watch=bars)
    write_image(result.image, options.output)
    if options.sheet:
        write_image(edit_sheet(result, options.text), options.sheet)
    summary = {**result.summary(), "output": str(options.output)}
    _print_summary(summary)
    if arguments["inversion"]:
        if "target-text inversion" not in result.seconds:
            gave = "the trajectory and the tuned text"
        elif arguments["inversion"].finished:
            gave = "the trajectory; the text was tuned anew"
        else:
            gave = "the steps it had; the others were done now"
        print(f"{options.inversion_file} gave {gave}")
    if options.json:
        print(json.dumps(summary))


def invert(options: argparse.Namespace) -> None:
    from .files import check_place
    from .inversion_file import check_name, unfinished_path
    from .progress import ProgressBars

    check_name(options.output)
    check_place(options.output, options.force)
    editor, arguments = _prepare(options)
    arguments |= {"file": options.output, "restart": options.force}
    try:
        with ProgressBars() as bars:
            inversion = editor.invert(options.image, options.text, **arguments, watch=bars)
    except KeyboardInterrupt:
        unfinished = unfinished_path(options.output)
        if not unfinished.exists():
            raise
        said = f"what was done is in {unfinished}; run the same command again to go on"
        raise KeyboardInterrupt(said) from None
    summary = {**inversion.summary(), "output": str(options.output)}
    iterations = f"inner iterations {summary['inner_iterations']} of {summary['inner_iterations_allowed']}"
    print(f"{options.output}: {iterations}, last loss {summary['last_loss']:.1e}")
    if options.json:
        print(json.dumps(summary))


def maps(options: argparse.Namespace) -> None:
    from .images import check_writable, write_image
    from .maps import MapRequest
    from .progress import ProgressBars
    from .sheet import maps_sheet

    check_writable(options.output, options.force)
    editor, arguments = _prepare(options)
    words = tuple(options.words or dict.fromkeys(options.text.split()))
    request = MapRequest(words, steps=None if options.at_step is None else [options.at_step], levels=options.levels)
    with ProgressBars() as bars:
        result = editor.edit(options.image, options.text, **arguments, maps=request, watch=bars)
    write_image(maps_sheet(result, options.text, options.at_step), options.output)
    print(f"{options.output}: where {', '.join(words)} are looked at")


def evaluate(options: argparse.Namespace) -> None:
    from .evaluation import evaluate
    from .miniature.world.tasks import KIND_SETTINGS
    from .progress import ProgressBars

    if options.scenes < 1:
        raise InputError(f"scenes must be at least 1, got {options.scenes}")
    if options.sheet:
        from .images import check_writable

        check_writable(options.sheet, options.force)
    editor = _load(options)
    settings = editor.settings(**KIND_SETTINGS[options.kind] | _chosen(options))
    with ProgressBars() as bars:
        scores, sheet = evaluate(
            editor,
            settings,
            options.kind,
            options.scenes,
            bars.count,
            distortion=options.distortion,
            sheet=bool(options.sheet),
        )
    if sheet:
        from .images import write_image

        write_image(sheet, options.sheet)
    for name, value in scores.items():
        print(f"{name:>22}  {value:.3f}")
    if options.json:
        print(json.dumps({"methods": {options.method: {name: round(value, 4) for name, value in scores.items()}}}))


def inspect(options: argparse.Namespace) -> None:
    from .weights import inspect

    for line in inspect(options.path, options.variant, options.tokenizer):
        print(line)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROG, description="Edit a real picture from one sentence (BARET).")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    command = commands.add_parser("edit", help="edit one picture", description="Edit one picture towards a text.")
    _add_picture(command, "edited.png")
    _add_inversion_file(command, "what `minibaret invert` wrote for this picture; what it holds is not done again")
    command.add_argument("--sheet", type=Path, help="also write input, reconstruction, transition, edit side by side")
    command.add_argument("--json", action="store_true", help="print the summary as one JSON line last")
    _add_model(command)
    _add_settings(command)
    command.set_defaults(run=edit)

    command = commands.add_parser(
        "invert",
        help="do the slow part of edits of one picture, once",
        description="Invert a picture and tune the text for it; `minibaret edit --inversion-file` edits from there. "
        "When it was interrupted, the same command goes on where it was.",
    )
    _add_picture(command, "inversion.safetensors")
    _add_inversion_file(command, "another inversion of this picture, whose trajectory is taken; only the text is tuned")
    command.add_argument("--json", action="store_true", help="print the summary as one JSON line last")
    _add_model(command)
    _add_settings(command, edit=False)
    command.set_defaults(run=invert)

    command = commands.add_parser(
        "maps",
        help="edit one picture and draw where its attention looks",
        description="Draw the cross-attention of words in reconstruction, transition and edit (the paper's Figure 3).",
    )
    _add_picture(command, "maps.png")
    _add_inversion_file(command, "what `minibaret invert` wrote for this picture; what it holds is not done again")
    command.add_argument("--words", nargs="+", metavar="WORD", help="words of the text; all of them if not given")
    command.add_argument("--at-step", type=int, metavar="STEP", help="from 0; the mean of all steps if not given")
    command.add_argument(
        "--levels", type=int, nargs="+", metavar="LEVEL", help="of the UNet, 0 the finest; default all"
    )
    _add_model(command)
    _add_settings(command)
    command.set_defaults(run=maps)

    command = commands.add_parser(
        "evaluate",
        help="score edits of drawn scenes whose right answer is known",
        description="Edit held-out scenes of the miniature world; compare with the same scenes drawn as the text says.",
    )
    command.add_argument("--scenes", type=int, default=40, help="default %(default)s")
    command.add_argument("--kind", choices=KINDS, default="posture", help="what is edited, default %(default)s")
    command.add_argument("--distortion", choices=DISTORTIONS, help="of the pictures before they are edited")
    command.add_argument("--method", choices=("baret",), default="baret", help="default %(default)s")
    command.add_argument("--sheet", type=Path, help="write input, reconstruction, transition, edit and right answer")
    command.add_argument("--force", action="store_true", help="overwrite files that exist")
    command.add_argument("--json", action="store_true", help="print the scores as one JSON line last")
    _add_model(command)
    _add_settings(command)
    command.set_defaults(run=evaluate)

    command = commands.add_parser(
        "inspect",
        help="say what a file or folder of weights is",
        description="Print the layout, dtypes and parameters of weights, and whether they would load.",
    )
    command.add_argument("path", type=Path, help="a safetensors file, a Hugging Face folder or a minibaret folder")
    _add_layout(command)
    command.set_defaults(run=inspect)
    return parser


def _add_picture(command: argparse.ArgumentParser, output: str) -> None:
    command.add_argument("image", type=Path, help="picture to edit: PNG, JPEG, WebP, …")
    command.add_argument("text", help="what the edited picture should show")
    command.add_argument("-o", "--output", type=Path, default=Path(output), help="default %(default)s")
    command.add_argument("--force", action="store_true", help="overwrite files that exist")
    command.add_argument("--fit", choices=("crop", "pad", "stretch"), help="default crop")
    command.add_argument("--width", type=int, help="pixels; the model's own size if not given")
    command.add_argument("--height", type=int)


def _add_inversion_file(command: argparse.ArgumentParser, text: str) -> None:
    text += "; size, fit and settings not given are the file's"
    command.add_argument("--inversion-file", type=Path, metavar="FILE", help=text)


def _add_model(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("model")
    group.add_argument("--weights", type=Path, help="file or folder; without it the miniature that ships")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
    group.add_argument("--dtype", default="auto", help="auto, float32, float16, bfloat16")
    group.add_argument("--compile", action="store_true", help="torch.compile the UNet; takes minutes before it begins")
    _add_layout(group)
    group = command.add_argument_group("memory")
    group.add_argument("--memory", metavar="LIMIT", help="such as 4G or 900M: takes of what follows what it needs")
    group.add_argument("--on-demand", action="store_true", help="networks are read when needed, and freed after")
    group.add_argument("--tiled-vae", action="store_true", help="the VAE works in strips; the picture stays the same")
    group.add_argument(
        "--max-rows", type=int, metavar="N", help="of the edit's batch at a time: less memory, same edit"
    )
    group.add_argument("--checkpointing", action="store_true", help="the tuning computes twice what it would keep")


def _add_layout(group) -> None:
    group.add_argument("--variant", help="which files of a Hugging Face folder: fp16, non_ema, …")
    group.add_argument("--tokenizer", type=Path, help="merges.txt, tokenizer.json or bpe_simple_vocab_16e6.txt.gz")


def _add_settings(command: argparse.ArgumentParser, edit: bool = True) -> None:
    group = command.add_argument_group("method", "defaults: the paper's, or the model's own where it has any")
    add = group.add_argument
    add("--steps", type=int, help="DDIM steps; paper: 50")
    add("--guidance", type=float, help="classifier-free guidance; paper: 7.5")
    if edit:
        add("--transition", type=_pair, metavar="FIRST:LAST", help="weight η of the tuned text; paper: 0.8:0.1")
        add("--rigid", action=BooleanOptionalAction, help="edit of style, background or object: no transition")
        add("--self-steps", type=float, help="part of the steps, the first, with self-attention injected; paper: 0.3")
        add("--cross-steps", type=float, help="part of the steps, the first, with cross-attention injected; paper: 0.6")
        add("--rows", choices=("cond", "both"), help="guidance rows that receive maps; default cond")
    add("--inversion-text", choices=("target", "null"), help="text of the DDIM inversion; default target")
    add("--inner-steps", type=int, help="inner iterations (Adam steps) at each time step, at most; paper: 5")
    add("--learning-rate", type=float, help="of the tuning; paper: 1e-3")
    add(
        "--tolerance",
        type=_pair,
        metavar="FIRST:RAISE",
        help="loss that ends a step, and its rise per step; 1e-5:2e-5",
    )


def _pair(text: str) -> tuple[float, float]:
    first, colon, last = text.partition(":")
    try:
        if colon:
            return float(first), float(last)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"two numbers joined by a colon were wanted, got {text!r}")


def _chosen(options: argparse.Namespace) -> dict:
    """The settings named on the command line; the others keep their defaults."""
    from dataclasses import fields

    from .settings import Settings

    given = {field.name: getattr(options, field.name, None) for field in fields(Settings)}
    return {name: value for name, value in given.items() if value is not None}


def _prepare(options: argparse.Namespace) -> tuple["Editor", dict]:
    """The editor, and what the options say about settings, size, fit and inversion, as its methods take it. What is not
    given is the inversion file's, or the model's."""
    from .inversion_file import load_inversion

    inversion = load_inversion(options.inversion_file) if options.inversion_file else None
    editor = _load(options)
    stored = inversion.origin.settings if inversion else {}
    width, height = inversion.origin.size if inversion else 2 * [editor.config.image_size]
    size = (width if options.width is None else options.width, height if options.height is None else options.height)
    settings = editor.settings(**{**stored, **_chosen(options)})
    return editor, {"settings": settings, "size": size, "fit": options.fit, "inversion": inversion}


def _load(options: argparse.Namespace) -> "Editor":
    from .loading import load
    from .memory import Savings

    savings = Savings(options.on_demand, options.tiled_vae, options.checkpointing, max_rows=options.max_rows)
    model = (options.weights, options.device, options.dtype, options.variant, options.tokenizer)
    return load(*model, options.memory, savings, compile=options.compile)


def _print_summary(summary: dict) -> None:
    stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in summary["seconds"].items())
    print(f"{summary['output']}: {stages}")
    print(
        f"inner iterations {summary['inner_iterations']} of {summary['inner_iterations_allowed']}, "
        f"reconstruction {summary['reconstruction_psnr']:.1f} dB against the input"
    )
    if summary["peak_memory"] is not None:
        print(f"peak memory {summary['peak_memory'] / 1e9:.2f} GB; savings: {summary['savings']}")
