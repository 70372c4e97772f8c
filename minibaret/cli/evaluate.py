"""`minibaret evaluate`: edits of many cases, scored, and what is shown of them."""

import argparse
import hashlib
import json
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

from .. import charts
from ..editor import Editor
from ..errors import InputError
from ..evaluation import curves, report
from ..evaluation.cases import LazyCase, folder_cases, pie_cases
from ..evaluation.networks import Networks
from ..evaluation.rows import Row, best, sweep
from ..evaluation.scoring import Edit, Laboratory, ScoreFile, Scorer, own_tower
from ..files import check_place, write_whole
from ..methods import METHODS
from ..origin import weight_digests
from ..progress import ProgressBars
from ..weights.miniature.cases import SEEDS, drawn_cases
from .common import loading, warn_of_steps, write_picture
from .options import chosen_knobs, method_with_knobs, names_in

DRAWN = ("drawn:", "sweep:")  # cases that are made, not read


def evaluate(options: argparse.Namespace) -> None:
    if options.show:
        return _show(options)
    if options.jobs < 1:
        raise InputError(f"jobs must be at least 1, got {options.jobs}")
    _check_name(options.output)
    check_place(options.output, force=True)
    pictures = options.output.with_suffix("")
    if pictures.exists() and not (pictures.is_dir() and (options.output.exists() or not any(pictures.iterdir()))):
        raise InputError(f"the edits' pictures go into a new folder {pictures}, but that is there: name other results")
    warn_of_steps(options.steps)
    laboratory = Laboratory(loading(options), options.networks, pictures)
    editor, _ = laboratory.open()
    shared, rows = chosen_knobs(options), []
    for name, knobs in map(method_with_knobs, names_in(options.methods)):
        knobs = {**shared, **knobs}
        rows.append(Row(name, vars(editor.settings(name, options.preset, **knobs))))
    asked = [*rows]
    if options.sweep is not None:
        asked += sweep(rows, options.sweep)
    if options.best_of:
        asked += [row.changed(**shared) for row in best(options.best_of, [row.method for row in rows])]
    if options.against:
        report.compared_with(list({str(row): row for row in asked}.values()), options.against)
    edits, left_out = [], set()
    for spec in options.cases:
        sources = _sources(spec, editor.config.image_size)
        for source in sources[:1] if spec.startswith(DRAWN) else sources:  # before the work: what cannot be edited
            case, methods = source.make(), {row.method for row in asked}
            without = {name for name in methods if METHODS[name].needs_source and case.source_prompt is None}
            try:
                for name in methods - without:
                    editor.check_prompts(name, case.prompt, case.source_prompt)
            except InputError as error:
                raise InputError(f"{source.name}: {error}") from None
        edits += [Edit(s, row.method, row.knobs) for s in sources for row in asked if row.method not in without]
        left_out |= without
    if not edits:
        raise InputError(f"cases with source prompts were wanted for {', '.join(left_out)}, got none")
    kept = ScoreFile(options.output, _fingerprint(editor, options.networks))
    try:
        with ProgressBars() as bars:
            scores = Scorer(laboratory, kept, options.jobs, bars.count).edits(edits)
    except KeyboardInterrupt:
        if not options.output.exists():
            raise
        raise KeyboardInterrupt(f"{options.output} has what was done; run the same command again to go on") from None
    except BrokenProcessPool:
        said = f"enough memory for {options.jobs} jobs was wanted, but one was killed"
        raise InputError(f"{said}; {options.output} has what was done, and the same command goes on") from None
    scored = report.grouped((edit.of, of_edit) for edit, of_edit in zip(edits, scores))
    print(report.as_text(report.table(scored, options.against), options.against))
    if left_out:
        print(f"left out where there is no source prompt: {', '.join(sorted(left_out))}")
    print(f"{options.output}: {len(kept.found)} edits")


def _fingerprint(editor: Editor, networks: Path | None) -> str:
    """Of the weights, and of the names and sizes of the networks' files."""
    parts = [weight_digests(editor.sd)]
    files = sorted(path for path in networks.rglob("*") if path.is_file()) if networks else ()
    parts += [(str(path.relative_to(networks)), path.stat().st_size) for path in files]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _show(options: argparse.Namespace) -> None:
    path, pictures = options.show, options.show.with_suffix("")
    _check_name(path)
    outputs = {ending: pictures.with_name(pictures.name + ending) for ending in (".md", ".json", ".png", "-curves.png")}
    for output in outputs.values():
        check_place(output, options.force)
    scored = report.read(path)
    networks = Networks(options.networks, tower=own_tower(options.weights))
    lines = report.table(scored, options.against, partial(report.fid, networks, pictures))
    text = report.as_text(lines, options.against)
    values = report.as_file(report.as_json(lines, options.against))
    for ending, content in ((".md", text), (".json", values)):
        write_whole(outputs[ending], content.encode(), options.force)
        options.written.append(outputs[ending])
    print(text)
    write_picture(options, report.sheet(scored, pictures), outputs[".png"])
    found = curves.curves([line for line in lines if line.kind == lines[0].kind])
    if found:
        write_picture(options, charts.picture(curves.charts(found)), outputs["-curves.png"])


def _check_name(results: Path) -> None:
    if results.suffix != ".jsonl":
        raise InputError(f"the name of results must end in .jsonl, got {results.name}")


def _sources(spec: str, side: int) -> list[LazyCase]:
    """The cases of an argument. Raises InputError where there are none."""
    where, _, rest = spec.partition(":")
    places = {
        "drawn": partial(drawn_cases, seeds=SEEDS["held-out"], side=side),
        "sweep": partial(drawn_cases, seeds=SEEDS["sweep"], side=side),
        "pie": pie_cases,
        "folder": folder_cases,
    }
    if where not in places or not rest:
        raise InputError(f"cases must be drawn:…, sweep:…, pie:FOLDER or folder:PATH, got {spec}")
    found = places[where](rest)
    if not found:
        raise InputError(f"there are no cases in {spec}")
    return found
