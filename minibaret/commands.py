"""What the commands do: `minibaret edit`, `compare`, `methods`, `generate`, `invert`, `maps`, `evaluate`, `inspect`."""

import argparse
import hashlib
import json
import sys
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

from PIL import Image

from . import charts, sheet, weights
from . import compare as comparison
from .editor import Editor
from .errors import InputError
from .evaluation import curves, report
from .evaluation.cases import Source, folder_sources, pie_sources
from .evaluation.networks import Networks
from .evaluation.rows import Row, best, search, sweep
from .evaluation.scoring import Edit, Kept, Laboratory, Scorer, own_tower
from .files import check_place, same_place, write_whole
from .images import check_writable, write_image
from .inversion import Origin, check_name, load_inversion, unfinished_path
from .kernels import triton_problem
from .loading import check_defaults, load, parse_device
from .maps import MapRequest
from .memory import Savings
from .methods import METHODS, find, prompt_to_prompt
from .methods.common import fits
from .miniature.cases import SEEDS, drawn_sources
from .options import PROG, chosen_knobs, method_with_knobs
from .progress import ProgressBars, run_to_end
from .result import Result
from .sampler import Schedule
from .weights.folder import CONFIG, read_config

MOST_COLUMNS = 5  # pictures side by side on a sheet


def edit(options: argparse.Namespace) -> None:
    _check_outputs(options, options.output, options.sheet)
    editor, arguments = _prepare(options)
    _check_pictures(options, arguments["size"], {options.output: 1, options.sheet: MOST_COLUMNS})
    with ProgressBars() as bars:
        result = editor.edit(
            options.image,
            options.prompt,
            pictures="all" if options.sheet else ("reconstruction",),
            watch=bars,
            **arguments,
        )
    _write(options, result.image, options.output)
    if options.sheet:
        _write(options, sheet.edit_sheet(result, options.prompt), options.sheet)
    _report(options, result)
    if arguments["inversion"]:
        gave = [e.name for e in result.kept.entries if e.read and e.used] or ["the picture's latents"]
        anew = [e.name for e in result.kept.entries if not e.read]
        print(f"{options.inversion_file} gave: {', '.join(gave)}" + (f"; made anew: {', '.join(anew)}" if anew else ""))
    if options.json:
        print(json.dumps({**result.summary(), "output": str(options.output)}))


def generate(options: argparse.Namespace) -> None:
    _check_outputs(options, options.output)
    method, source = "prompt-to-prompt", options.source_prompt
    editor = _load(options)
    knobs = editor.settings(method, options.preset, **chosen_knobs(options, method))
    size = _size(options, editor)
    _check_pictures(options, size, {options.output: 1 if source is None else 2})
    editor.check_prompts(method, options.prompt, options.prompt if source is None else source)
    _warn_of_words(editor, options)
    with ProgressBars() as bars:
        found = run_to_end(
            prompt_to_prompt.generate(editor.sd, source, options.prompt, knobs, size, options.seed), bars
        )
    picture = editor.sd.decode(found["edit"])
    if source is not None:
        picture = sheet.columns_sheet([[editor.sd.decode(found["source"]), picture]], [source, options.prompt])
    _write(options, picture, options.output)
    print(f"{options.output}: seed {options.seed}")
    if options.json:
        print(json.dumps({"seed": options.seed, "output": str(options.output)}))


def compare(options: argparse.Namespace) -> None:
    _check_outputs(options, options.output)
    names = options.methods.split(",") if options.methods else list(METHODS)
    if options.steps is not None:
        _warn_of_steps(options.steps)
    editor = _load(options)
    shared = {name: getattr(options, name) for name in ("steps", "guidance") if getattr(options, name) is not None}
    choices = {"source_prompt": options.source_prompt, "methods": names, "preset": options.preset, **shared}
    size = _size(options, editor)
    _check_pictures(options, size, {options.output: MOST_COLUMNS})
    _warn_of_words(editor, options)
    with ProgressBars() as bars:
        work = comparison.compare(editor, options.image, options.prompt, size=size, fit=options.fit, **choices)
        found = run_to_end(work, bars)
    _write(options, found.sheet(options.prompt), options.output)
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
        default = getattr(method.knobs(), method.strength) if method.strength else ""
        knob = f"{method.strength.replace('_', '-')} {default}" if method.strength else "–"
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
    _check_outputs(options, options.output)
    editor, arguments = _prepare(options)
    words = tuple(options.words or dict.fromkeys(options.prompt.split()))
    request = MapRequest(words, steps=None if options.at_step is None else [options.at_step], levels=options.levels)
    _check_pictures(options, arguments["size"], {options.output: 1 + len(words)})
    with ProgressBars() as bars:
        result = editor.edit(options.image, options.prompt, maps=request, pictures="all", watch=bars, **arguments)
    _write(options, sheet.maps_sheet(result, options.prompt, options.at_step), options.output)
    print(f"{options.output}: where {', '.join(words)} are looked at")


def evaluate(options: argparse.Namespace) -> None:
    if options.show:
        return _show(options)
    if options.jobs < 1 or (options.search is not None and options.search < 1):
        raise InputError(f"jobs and search must be at least 1, got {options.jobs} and {options.search}")
    if options.search and any(spec.startswith("drawn:") for spec in options.cases):
        raise InputError("a search must be on --cases sweep:…: drawn:… are those that its best rows are measured on")
    if options.output.suffix != ".jsonl":
        raise InputError(f"the name of results must end in .jsonl, got {options.output.name}")
    check_place(options.output, force=True)
    laboratory = Laboratory(_loading(options), options.networks, options.output.with_suffix(""))
    editor, _ = laboratory.open()
    shared = {name: getattr(options, name) for name in ("steps", "guidance") if getattr(options, name) is not None}
    rows, more = [], []
    for name, knobs in map(method_with_knobs, options.methods.split(",")):
        knobs = {**shared, **knobs}
        rows.append(Row(name, vars(editor.settings(name, options.preset, **knobs))))
        more += search(rows[-1], options.search, knobs) if options.search else []
    asked = [*rows, *more]
    if options.sweep is not None:
        asked += sweep(rows, options.sweep)
    if options.best_of:
        asked += best(options.best_of, [row.method for row in rows])
    edits, left_out = [], set()
    for spec in options.cases:
        sources = _sources(spec, editor.config.image_size)
        first = sources[0].make()
        without = {row.method for row in asked if METHODS[row.method].needs_source and first.source_prompt is None}
        edits += [Edit(s, row.method, row.knobs) for s in sources for row in asked if row.method not in without]
        left_out |= without
    if not edits:
        raise InputError(f"cases with source prompts were wanted for {', '.join(left_out)}, got none")
    weights = Origin.of(editor.sd, first.image, first.fit).weights
    kept = Kept(options.output, hashlib.sha256(json.dumps(weights).encode()).hexdigest()[:16])
    try:
        with ProgressBars() as bars:
            scores = Scorer(laboratory, kept, options.jobs, bars.count).edits(edits)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{options.output} has what was done; run the same command again to go on") from None
    except BrokenProcessPool:
        said = f"enough memory for {options.jobs} jobs was wanted, but one was killed"
        raise InputError(f"{said}; {options.output} has what was done, and the same command goes on") from None
    scored = report.grouped((edit.of, of_edit) for edit, of_edit in zip(edits, scores))
    print(report.as_text(report.table(scored, options.against), options.against))
    if left_out:
        print(f"left out where there is no source prompt: {', '.join(sorted(left_out))}")
    print(f"{options.output}: {len(kept.found)} edits")


def _show(options: argparse.Namespace) -> None:
    path, pictures = options.show, options.show.with_suffix("")
    outputs = {ending: pictures.with_name(pictures.name + ending) for ending in (".md", ".json", ".png", "-curves.png")}
    for output in outputs.values():
        check_place(output, options.force)
    scored = report.read(path)
    networks = Networks(options.networks, tower=own_tower(options.weights))
    lines = report.table(scored, options.against, partial(report.fid, networks, pictures))
    text = report.as_text(lines, options.against)
    _write(options, report.sheet(scored, pictures), outputs[".png"])
    found = curves.curves([line for line in lines if line.kind == lines[0].kind])
    if found:
        _write(options, charts.picture(curves.charts(found)), outputs["-curves.png"])
    values = json.dumps(report.as_json(lines, options.against), ensure_ascii=False, indent=1)
    for ending, content in ((".md", text), (".json", values + "\n")):
        write_whole(outputs[ending], content.encode(), options.force)
        options.written.append(outputs[ending])
    print(text)


def _sources(spec: str, side: int) -> list[Source]:
    """The cases of an argument. Raises InputError where there are none."""
    where, _, rest = spec.partition(":")
    places = {
        "drawn": partial(drawn_sources, seeds=SEEDS["held-out"], side=side),
        "sweep": partial(drawn_sources, seeds=SEEDS["sweep"], side=side),
        "pie": pie_sources,
        "folder": folder_sources,
    }
    if where not in places or not rest:
        raise InputError(f"cases must be drawn:…, sweep:…, pie:FOLDER or folder:PATH, got {spec}")
    found = places[where](rest)
    if not found:
        raise InputError(f"there are no cases in {spec}")
    return found


def convert(options: argparse.Namespace) -> None:
    with ProgressBars() as bars:
        weights.convert(
            options.path, options.output, options.dtype, options.variant, options.tokenizer, watch=bars.count
        )
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
    if "steps" in given:
        _warn_of_steps(given["steps"])
    return given


def _warn_of_steps(steps: int) -> None:
    warning = Schedule(steps).warning() if fits("steps", steps) else None
    if warning:
        print(f"{PROG}: {warning}", file=sys.stderr)


def _prepare(options: argparse.Namespace) -> tuple[Editor, dict]:
    """The editor, and what the options say, as its methods take it. What is not given is the inversion file's, or the
    model's."""
    knobs = _knobs(options)
    inversion = load_inversion(options.inversion_file) if options.inversion_file else None
    editor = _load(options)
    _warn_of_words(editor, options)
    return editor, {
        "method": options.method,
        "source_prompt": options.source_prompt,
        "size": _size(options, editor, inversion.origin.size if inversion else None),
        "fit": options.fit,
        "inversion": inversion,
        "preset": options.preset,
        **knobs,
    }


def _size(options: argparse.Namespace, editor: Editor, size: tuple[int, int] | None = None) -> tuple[int, int]:
    width, height = size or 2 * [editor.config.image_size]
    return editor.check_size(
        (width if options.width is None else options.width, height if options.height is None else options.height)
    )


def _load(options: argparse.Namespace) -> Editor:
    return load(*_loading(options))


def _loading(options: argparse.Namespace) -> tuple:
    """The arguments of `load`."""
    savings = Savings(options.on_demand, options.tiled_vae, options.checkpointing)
    model = (options.weights, options.device, options.dtype, options.variant, options.tokenizer)
    return (*model, options.memory, savings, options.compile)


def _check_outputs(options: argparse.Namespace, *paths: Path | None) -> None:
    """Raises InputError where a picture could not be written to one of these, before any work is done for it."""
    paths = [path for path in paths if path]
    if len(paths) == 2 and same_place(*paths):
        raise InputError(f"--output and --sheet must be two files, got {paths[0]} for both")
    for path in paths:
        check_writable(path, options.force)


def _check_pictures(options: argparse.Namespace, size: tuple[int, int], columns: dict[Path | None, int]) -> None:
    """Raises InputError where a file cannot hold as many pictures of the size side by side as are given for it."""
    for path, count in columns.items():
        if path:
            check_writable(path, options.force, (count * size[0], size[1]))


def _write(options: argparse.Namespace, picture: Image.Image, path: Path) -> None:
    write_image(picture, path, options.force)
    options.written.append(path)


def _warn_of_words(editor: Editor, options: argparse.Namespace) -> None:
    words = editor.config.unknown_words(f"{options.prompt} {options.source_prompt or ''}")
    if words:
        said = f"{editor.config.name} does not know these words and takes no sense from them: {', '.join(words)}"
        print(f"{PROG}: {said}; Stable Diffusion 1.5 knows most words (--weights PATH)", file=sys.stderr)


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
