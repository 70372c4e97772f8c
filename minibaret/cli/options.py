"""What the command line takes. The methods' flags are made from their knobs, one for each name."""

import argparse
from argparse import BooleanOptionalAction
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from ..errors import InputError

PROG = "minibaret"
# The same as in the miniature's world, images.py and methods/common.py, which are not imported for a --help.
KINDS, FITS = ("posture", "colour", "ground", "animal", "addition"), ("crop", "pad", "stretch")
PRESETS = ("paper", "fast")
PARSERS = {"steps": int, "count": int, "number": float, "positive": float, "fraction": float, "word": str}


def parser(command: Sequence[str] = ()) -> argparse.ArgumentParser:
    """command: the one that will be parsed, whose methods' flags are then there as well."""
    parser = _Brief(prog=PROG, description="Edit a real picture from one sentence.")
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    full = bool(command) and command[0] in ("edit", "invert", "maps", "generate")

    def add(name: str, help: str, description: str = "") -> argparse.ArgumentParser:
        return commands.add_parser(name, help=help, description=description or f"{help.capitalize()}.")

    found = add("edit", "edit one picture", "Edit one picture towards a prompt.")
    _add_picture(found, "edited.png")
    _add_method(found, full)
    _add_inversion_file(found, "what `minibaret invert` wrote for this picture; what it holds is not done again")
    found.add_argument("--sheet", type=Path, help="also write input, other branches and edit side by side")
    _add_json(found)
    _add_model(found)

    found = add(
        "compare", "edit one picture by many methods", "Edit one picture by many methods, on one labelled sheet."
    )
    _add_picture(found, "compare.png")
    found.add_argument("--source-prompt", metavar="PROMPT", help="what the picture shows; some methods need it")
    found.add_argument("--methods", metavar="A,B,…", help="default: all that `minibaret methods` lists")
    _add_preset(found)
    found.add_argument("--steps", type=int, help="DDIM steps")
    found.add_argument("--guidance", type=float, help="w, the scale of classifier-free guidance")
    _add_json(found)
    _add_model(found)

    found = add("methods", "list the methods: what each needs, its knob, what it tunes, its paper")
    found.add_argument(
        "--measure", action="store_true", help="also edit a shipped picture by each, and say how long it takes here"
    )
    found.add_argument("--steps", type=int, default=50, help="of these edits; default %(default)s")

    found = add(
        "invert",
        "do the slow part of edits of one picture, once",
        "Invert a picture, and tune what the method tunes; `minibaret edit --inversion-file` edits from there. When it "
        "was interrupted, the same command goes on where it was.",
    )
    _add_picture(found, "inversion.safetensors")
    _add_method(found, full)
    _add_inversion_file(found, "another inversion of this picture, whose trajectory is taken; the rest is made anew")
    _add_json(found)
    _add_model(found)

    found = add(
        "generate",
        "make a picture of a prompt; with --source-prompt two, by prompt-to-prompt",
        "Make a picture of a prompt from noise. With --source-prompt: that prompt's picture beside it, from the same "
        "noise, whose attention the first one takes (prompt-to-prompt).",
    )
    found.add_argument("prompt", help="what the picture should show")
    found.add_argument("--source-prompt", metavar="PROMPT", help="the prompt that it should be an edit of")
    found.add_argument("--seed", type=int, default=0, help="of the noise; default %(default)s")
    _add_output(found, "generated.png")
    _add_preset(found)
    if full:
        _add_knobs(found.add_argument_group("knobs"), "prompt-to-prompt")
    _add_json(found)
    _add_model(found)

    found = add(
        "maps",
        "edit one picture and draw where its attention looks",
        "Draw the cross-attention of words in each branch (the BARET paper's Figure 3).",
    )
    _add_picture(found, "maps.png")
    _add_method(found, full)
    _add_inversion_file(found, "what `minibaret invert` wrote for this picture; what it holds is not done again")
    found.add_argument("--words", nargs="+", metavar="WORD", help="words of the prompt; all of them if not given")
    found.add_argument("--at-step", type=int, metavar="STEP", help="from 0; the mean of all steps if not given")
    found.add_argument("--levels", type=int, nargs="+", metavar="LEVEL", help="of the UNet, 0 the finest; default all")
    _add_model(found)

    found = add(
        "evaluate",
        "score methods on many cases, and show what came of it",
        "Edit cases by methods and keep each edit's scores in a file, which the same command goes on with; then --show "
        "makes tables, a sheet and plots of them.",
    )
    found.add_argument(
        "--methods",
        default="baret",
        metavar="A,B,…",
        help="knobs of their own follow a plus, as in baret+rigid,direct+editor=masactrl; default %(default)s",
    )
    found.add_argument(
        "--cases",
        nargs="+",
        default=["drawn:posture:40"],
        metavar="CASES",
        help=f"drawn:KIND:COUNT, held-out scenes of the miniature's world, KIND one of {', '.join(KINDS)}; sweep:…, "
        "the scenes to choose knobs by; pie:FOLDER[:KIND], PIE-Bench; folder:PATH, pictures and a CSV file with the "
        "columns image, prompt, source_prompt and kind, the last two if known",
    )
    found.add_argument("-o", "--output", type=Path, default=Path("results.jsonl"), help="default %(default)s")
    found.add_argument("--jobs", type=int, default=1, help="processes of one thread each; 1: this one, as it is")
    _add_preset(found)
    found.add_argument("--steps", type=int, help="DDIM steps")
    found.add_argument("--guidance", type=float, help="w, the scale of classifier-free guidance")
    found.add_argument(
        "--sweep",
        nargs="*",
        metavar="METHOD.KNOB",
        help="also the useful values of these knobs; with no name, of each method's own",
    )
    found.add_argument(
        "--best-of", type=Path, metavar="FILE", help="also each method's best knobs in the JSON that --show wrote"
    )
    found.add_argument("--networks", type=Path, metavar="FOLDER", help="with CLIP, DINO, … that some metrics need")
    found.add_argument("--show", type=Path, metavar="RESULTS", help="write its table (.md, .json), sheet and plots")
    found.add_argument("--against", default="", metavar="METHOD", help="compare the others with it, case by case")
    _add_force(found)
    _add_model(found)

    found = add(
        "convert",
        "write weights as a minibaret folder in one dtype",
        "Write any weights that load as a minibaret folder, in little memory. Weights in the dtype that they are "
        "computed in need no memory of their own: edits of such a folder keep the smallest --memory limits.",
    )
    found.add_argument("path", type=Path, help="a safetensors file, a Hugging Face folder or a minibaret folder")
    found.add_argument("-o", "--output", type=Path, required=True, help="the folder, which is yet to be made")
    found.add_argument("--dtype", required=True, help="bfloat16, float16, float32, or int8: half the size of these two")
    _add_layout(found)

    found = add(
        "inspect",
        "say what a file or folder of weights is",
        "Print the layout, dtypes and parameters of weights, and whether they would load.",
    )
    found.add_argument("path", type=Path, help="a safetensors file, a Hugging Face folder or a minibaret folder")
    found.add_argument("--device", help="also say what would compute attention there")
    _add_layout(found)
    return parser


def _add_picture(command: argparse.ArgumentParser, output: str) -> None:
    command.add_argument("image", type=Path, help="picture to edit: PNG, JPEG, WebP, …")
    command.add_argument("prompt", help="what the edited picture should show")
    command.add_argument("--fit", choices=FITS, help="default crop")
    _add_output(command, output)


def _add_output(command: argparse.ArgumentParser, output: str) -> None:
    command.add_argument("-o", "--output", type=Path, default=Path(output), help="default %(default)s")
    _add_force(command)
    command.add_argument("--width", type=int, help="pixels; the model's own size if not given")
    command.add_argument("--height", type=int)


def _add_force(command) -> None:
    command.add_argument("--force", action="store_true", help="overwrite files that exist")


def _add_json(command) -> None:
    command.add_argument("--json", action="store_true", help="print the summary as one JSON line last")


def _add_inversion_file(command: argparse.ArgumentParser, text: str) -> None:
    text += "; size, fit and knobs not given are the file's"
    command.add_argument("--inversion-file", type=Path, metavar="FILE", help=text)


def _add_model(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("model")
    group.add_argument("--weights", type=Path, help="file or folder; without it the miniature that ships")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
    group.add_argument("--dtype", default="auto", help="auto, float32, float16, bfloat16")
    group.add_argument("--compile", action="store_true", help="torch.compile the UNet; takes minutes before it begins")
    _add_layout(group)
    group = command.add_argument_group("memory")
    group.add_argument("--memory", metavar="LIMIT", help="such as 4G or 900M: turns on the savings below that it needs")
    group.add_argument("--on-demand", action="store_true", help="networks are read when needed, and freed after")
    group.add_argument("--tiled-vae", action="store_true", help="the VAE works in strips; the picture stays the same")
    group.add_argument(
        "--checkpointing", action="store_true", help="tuning computes activations anew in its backward pass"
    )


def _add_layout(group) -> None:
    group.add_argument("--variant", help="which files of a Hugging Face folder: fp16, non_ema, …")
    group.add_argument("--tokenizer", type=Path, help="merges.txt, tokenizer.json or bpe_simple_vocab_16e6.txt.gz")


def _add_method(command: argparse.ArgumentParser, full: bool) -> None:
    """full: with a flag for each name that a knob of any method has, which says every method's default."""
    group = command.add_argument_group("method", "knobs and their defaults; a model may bring defaults of its own")
    group.add_argument("--method", default="baret", help="one that `minibaret methods` lists; default %(default)s")
    group.add_argument("--source-prompt", metavar="PROMPT", help="what the picture shows; some methods need it")
    _add_preset(group)
    if full:
        _add_knobs(group)


def _add_preset(group) -> None:
    text = "paper: the paper's values, whatever the model's config says; fast: 20 steps, to try many prompts"
    group.add_argument("--preset", choices=PRESETS, help=text)


def _add_knobs(group, method: str | None = None) -> None:
    """Of that method, or of all."""
    for name, entries in knob_fields(method).items():
        kind = next(iter(entries.values())).metadata["kind"]
        flag, help = f"--{name.replace('_', '-')}", _help(entries, method is not None)
        if kind == "flag":
            group.add_argument(flag, action=BooleanOptionalAction, default=None, help=help)
        elif kind in ("fractions", "pair"):
            group.add_argument(flag, type=_pair, metavar="FIRST:LAST", help=help)
        elif kind == "weights":
            group.add_argument(flag, type=_weight, action="append", metavar="WORD=NUMBER", help=help)
        elif isinstance(kind, str):
            group.add_argument(flag, type=PARSERS[kind], metavar=kind.upper(), help=help)
        else:
            group.add_argument(flag, choices=kind, help=help)


def names_in(text: str) -> list[str]:
    """What stands between commas."""
    return [name.strip() for name in text.split(",")]


def method_with_knobs(text: str) -> tuple[str, dict]:
    """METHOD+KNOB=VALUE+…: the method's name, and its knobs by name. Raises InputError for what is neither."""
    from ..methods import find

    name, *flags = text.split("+")
    parser = _Strict(add_help=False, allow_abbrev=False)
    for flag in flags:
        knob = flag.partition("=")[0].replace("-", "_").removeprefix("no_")
        if knob not in knob_fields(find(name).name):
            find(name).knobs_from({knob: None})  # says which it has
    _add_knobs(parser, find(name).name)
    return name, chosen_knobs(parser.parse_args([f"--{flag}" for flag in flags]), name)


class _Brief(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help says more\n")


class _Strict(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise InputError(f"a method with knobs must be like direct+editor=masactrl: {message}")


def knob_fields(method: str | None = None) -> dict[str, dict]:
    """The knobs of that method, or of all: fields by name, then by method."""
    from ..methods import METHODS

    found: dict[str, dict] = {}
    for each in METHODS.values():
        for entry in fields(each.knobs) if method in (None, each.name) else ():
            found.setdefault(entry.name, {})[each.name] = entry
    return found


def chosen_knobs(options: argparse.Namespace, method: str | None = None) -> dict:
    """The knobs that were given, of that method or of any."""
    given = {name: getattr(options, name, None) for name in knob_fields(method)}
    given = {name: value for name, value in given.items() if value is not None}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def _help(entries: dict, alone: bool) -> str:
    """What the knob is and its default, by methods where these differ in it. alone: there is one method."""
    from ..methods.common import as_text

    texts: dict[str, dict[str, list[str]]] = {}  # by what it is, by default: the methods
    for method, entry in entries.items():
        source = f", {entry.metadata['source']}" * bool(entry.metadata["source"])
        groups = texts.setdefault(entry.metadata["help"], {})
        groups.setdefault(as_text(entry.default) + source, []).append(method)
    said = []
    for text, groups in texts.items():
        (most, _), *others = sorted(groups.items(), key=lambda group: -len(group[1]))
        defaults = "; ".join([f"default {most}", *(f"{', '.join(of)} {value}" for value, of in others)])
        having = ", ".join(name for of in groups.values() for name in of)
        whose = f"{having}: " if not alone and (len(texts) > 1 or len(entries) == 1) else ""
        said.append(f"{whose}{text} ({defaults})")
    return "; ".join(said).replace("%", "%%")


def _pair(text: str) -> tuple[float, float]:
    first, colon, last = text.partition(":")
    try:
        if colon:
            return float(first), float(last)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"two numbers joined by a colon were wanted, got {text!r}")


def _weight(text: str) -> tuple[str, float]:
    word, equals, number = text.rpartition("=")
    try:
        if word and equals:
            return word, float(number)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"a word and a number joined by an equals sign were wanted, got {text!r}")
