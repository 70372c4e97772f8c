"""What the commands do: `minibaret edit`, `compare`, `methods`, `generate`, `invert`, `maps`,
`convert`, `inspect`; `evaluate` has a file of its own."""

import argparse
import json

from .. import compare as comparison
from .. import sheet, weights
from ..editor import Editor
from ..files import check_place
from ..inversion import check_name, load_inversion, unfinished_path
from ..kernels import triton_problem
from ..loading import check_defaults, load, parse_device
from ..maps import BRANCHES, MapRequest
from ..methods import METHODS, find
from ..methods.common import as_text
from ..progress import ProgressBars, run_to_end
from ..result import Result
from ..weights.folder import CONFIG, read_config
from .common import check_outputs, check_pictures, open_editor, size_of, warn_of_steps, warn_of_words, write_picture
from .evaluate import evaluate
from .options import chosen_knobs, names_in

MOST_COLUMNS = 5  # pictures side by side on a sheet


def edit(options: argparse.Namespace) -> None:
    check_outputs(options, options.output, options.sheet)
    editor, arguments = _prepare(options)
    check_pictures(options, arguments["size"], {options.output: (1, 1), options.sheet: (MOST_COLUMNS, 1)})
    with ProgressBars() as bars:
        result = editor.edit(
            options.image,
            options.prompt,
            pictures="all" if options.sheet else ("reconstruction",),
            watch=bars,
            **arguments,
        )
    write_picture(options, result.image, options.output)
    if options.sheet:
        write_picture(options, sheet.edit_sheet(result, options.prompt), options.sheet)
    _report(options, result)
    if arguments["inversion"]:
        gave = [e.name for e in result.kept.entries if e.read and e.used] or ["the picture's latents"]
        anew = [e.name for e in result.kept.entries if not e.read]
        print(f"{options.inversion_file} gave: {', '.join(gave)}" + (f"; made anew: {', '.join(anew)}" if anew else ""))
    if options.json:
        print(json.dumps({**result.summary(), "output": str(options.output)}))


def generate(options: argparse.Namespace) -> None:
    check_outputs(options, options.output)
    method, source = "prompt-to-prompt", options.source_prompt
    knobs = chosen_knobs(options, method)
    warn_of_steps(options.steps)
    editor = open_editor(options)
    size = size_of(options, editor)
    check_pictures(options, size, {options.output: (1 if source is None else 2, 1)})
    warn_of_words(editor, options)
    chosen = {"seed": options.seed, "size": size, "preset": options.preset, **knobs}
    with ProgressBars() as bars:
        found = editor.generate(options.prompt, source, watch=bars, **chosen)
    picture = found["edit"]
    if source is not None:
        picture = sheet.columns_sheet([[found["source"], picture]], [source, options.prompt])
    write_picture(options, picture, options.output)
    print(f"{options.output}: seed {options.seed}")
    if options.json:
        print(json.dumps({"seed": options.seed, "output": str(options.output)}))


def compare(options: argparse.Namespace) -> None:
    check_outputs(options, options.output)
    names = names_in(options.methods) if options.methods else list(METHODS)
    warn_of_steps(options.steps)
    editor = open_editor(options)
    choices = {"source_prompt": options.source_prompt, "methods": names, "preset": options.preset}
    choices |= chosen_knobs(options)
    size = size_of(options, editor)
    check_pictures(options, size, {options.output: (comparison.COLUMNS, -(-(1 + len(names)) // comparison.COLUMNS))})
    warn_of_words(editor, options)
    with ProgressBars() as bars:
        work = comparison.compare(editor, options.image, options.prompt, size=size, fit=options.fit, **choices)
        found = run_to_end(work, bars)
    write_picture(options, found.sheet(options.prompt), options.output)
    for name, result in found.results.items():
        counts = result.counts
        print(f"{name:<18} {sum(result.seconds.values()):6.1f} s {counts.row_forwards:6} row-forwards", end="")
        print(f" {counts.gradient_passes:5} gradient passes")
    if found.left_out:
        print(f"left out, since they need a --source-prompt: {', '.join(found.left_out)}")
    print("a DDIM inversion that several share is counted for the first of them")
    print(f"{options.output}: {len(found.results)} methods")
    if options.json:
        print(json.dumps({**found.summary(), "output": str(options.output)}))


def methods(options: argparse.Namespace) -> None:
    seconds = _measured(options.steps) if options.measure else {}
    rows = [("method", "needs", "knob", "tunes", *(["seconds"] if seconds else []), "paper", "")]
    for method in METHODS.values():
        knob = f"{method.strength.replace('_', '-')} {as_text(getattr(method.knobs(), method.strength))}"
        took = [f"{seconds[method.name]:.1f}"] if seconds else []
        rows.append((method.name, method.needs(), knob, method.tunes or "–", *took, method.paper, method.summary))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        print("  ".join(f"{text:<{width}}" for text, width in zip(row, widths)) + "  " + row[-1])


def _measured(steps: int) -> dict[str, float]:
    """Seconds of an edit of a shipped picture by each method, each by itself."""
    editor, dog, found = load(), weights.MINIATURE_FOLDER / "examples" / "dog.png", {}
    with ProgressBars() as bars:
        for name in METHODS:
            options = {"source_prompt": "a brown dog standing on grass", "steps": steps, "pictures": (), "watch": bars}
            result = editor.edit(dog, "a brown dog lying down on grass", name, **options)
            found[name] = sum(result.seconds.values())
    return found


def invert(options: argparse.Namespace) -> None:
    check_name(options.output)
    check_place(options.output, options.force)
    editor, arguments = _prepare(options)
    try:
        with ProgressBars() as bars:
            found = editor.invert(
                options.image,
                options.prompt,
                file=options.output,
                restart=options.force,
                overwrite=options.force,
                watch=bars,
                **arguments,
            )
    except KeyboardInterrupt:
        unfinished = unfinished_path(options.output)
        if not unfinished.exists():
            raise
        said = f"what was done is in {unfinished}; run the same command again to go on"
        raise KeyboardInterrupt(said) from None
    lists = {entry.name: len(entry.items) for entry in found.entries}
    print(f"{options.output}: {', '.join(f'{name} ({count})' for name, count in lists.items())}")
    if options.json:
        print(json.dumps({"method": options.method, "lists": lists, "output": str(options.output)}))


def maps(options: argparse.Namespace) -> None:
    check_outputs(options, options.output)
    editor, arguments = _prepare(options)
    words = tuple(options.words or dict.fromkeys(options.prompt.split()))
    request = MapRequest(words, steps=None if options.at_step is None else [options.at_step], levels=options.levels)
    check_pictures(options, arguments["size"], {options.output: (1 + len(words), len(BRANCHES))})
    with ProgressBars() as bars:
        result = editor.edit(options.image, options.prompt, maps=request, pictures="all", watch=bars, **arguments)
    write_picture(options, sheet.maps_sheet(result, options.prompt, options.at_step), options.output)
    print(f"{options.output}: where {', '.join(words)} are looked at")


def convert(options: argparse.Namespace) -> None:
    try:
        with ProgressBars() as bars:
            weights.convert(
                options.path, options.output, options.dtype, options.variant, options.tokenizer, watch=bars.count
            )
    except KeyboardInterrupt:
        unfinished = options.output.with_name(options.output.name + ".part")
        if not unfinished.exists():
            raise
        raise KeyboardInterrupt(f"{unfinished} has a part of it, which the same command begins anew") from None
    print(f"{options.output}: {options.dtype}, {sum(file.stat().st_size for file in options.output.iterdir()):,} bytes")


def inspect(options: argparse.Namespace) -> None:
    device = parse_device(options.device) if options.device else None
    if (options.path / CONFIG).is_file():
        check_defaults(read_config(options.path))
    for line in weights.inspect(options.path, options.variant, options.tokenizer):
        print(line)
    if device:
        problem = triton_problem(device)
        how = f"PyTorch, since {problem}" if problem else "the Triton kernel where rows share a map, else PyTorch"
        print(f"attention on {device}: {how}")


def _knobs(options: argparse.Namespace) -> dict:
    """The knobs named on the command line; the others keep their defaults. Raises InputError for another method's."""
    given = chosen_knobs(options)
    find(options.method).knobs_from(given)
    warn_of_steps(given.get("steps"))
    return given


def _prepare(options: argparse.Namespace) -> tuple[Editor, dict]:
    """The editor, and what the options say, as its methods take it. What is not given is the inversion file's, or the
    model's."""
    knobs = _knobs(options)
    inversion = load_inversion(options.inversion_file) if options.inversion_file else None
    editor = open_editor(options)
    warn_of_words(editor, options)
    return editor, {
        "method": options.method,
        "source_prompt": options.source_prompt,
        "size": size_of(options, editor, inversion.origin.size if inversion else None),
        "fit": options.fit,
        "inversion": inversion,
        "preset": options.preset,
        **knobs,
    }


def _report(options: argparse.Namespace, result: Result) -> None:
    summary = result.summary()
    stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in summary["seconds"].items())
    print(f"{options.output}: {stages}")
    figures = [f"{summary['row_forwards']} row-forwards of the UNet, {summary['gradient_passes']} gradient passes"]
    if "reconstruction_psnr" in summary:
        figures.append(f"reconstruction {summary['reconstruction_psnr']:.1f} dB against the input")
    print(", ".join(figures))
    if "colours" in summary:
        print(f"{options.image}: {summary['colours']}")
    if summary["peak_memory"] is not None:
        print(f"peak memory {summary['peak_memory'] / 1e9:.2f} GB; savings: {summary['savings']}")


COMMANDS = {
    command.__name__: command
    for command in (edit, compare, methods, invert, generate, maps, evaluate, convert, inspect)
}
