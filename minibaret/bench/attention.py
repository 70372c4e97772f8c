"""Injected attention against plain attention, at every site's shape."""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError
from ..kernels import attention
from ..kernels.rows import gather_rows
from ..models.configs import MINIATURE, SD15, ModelConfig
from . import naive
from .common import card, finish, in_turns, peak_bytes, ratio, spread, trace
from .roofline import GPUS, Shape, work
from .unet import TEXT

SOURCES = {  # by rows: who takes whose map, as in BARET's batches
    2: (0, 0),  # the edit takes the reconstruction's
    3: (0, 1, 0),  # reconstruction, edit without text, edit
    6: (0, 1, 2, 3, 4, 1),  # all three processes, without and with text
}
WAYS = ("plain", "materialised", "gathered", "concatenated", "injected")


def sites(model: ModelConfig) -> dict[str, tuple[int, int, int]]:
    """(queries, keys, features) of the attention sites, by name: self-4096, cross-4096, …"""
    found = {}
    latents = model.image_size // model.latent_factor
    middle = len(model.unet.channels) - 1
    for level, width in enumerate(model.unet.channels):
        if model.unet.attention[level] or level == middle:
            tokens = (latents >> level) ** 2
            found[f"self-{tokens}"] = tokens, tokens, width // model.unet.heads
            found[f"cross-{tokens}"] = tokens, TEXT, width // model.unet.heads
    return dict(sorted(found.items(), key=lambda site: (site[0].startswith("cross"), -site[1][0])))


def ways(q: Tensor, k: Tensor, v: Tensor, source: tuple[int, ...], implementation: str) -> dict[str, Callable]:
    """q, k, v (B, N | M, H, D), as a UNet without injection has them; what each way does to inject."""
    unique = sorted(set(source))  # the rows whose queries and keys an injecting UNet projects
    q_few, k_few, renamed = q[unique], k[unique], [unique.index(row) for row in source]

    def materialised() -> Tensor:
        return naive.materialised(*(x.transpose(1, 2) for x in (q, k, v)), source).transpose(1, 2)

    found = {
        "plain": lambda: attention(q, k, v, None, "torch"),
        "materialised": materialised,
        "gathered": lambda: attention(gather_rows(q, source), gather_rows(k, source), v, None, "torch"),
        "injected": lambda: attention(q_few, k_few, v, renamed, implementation),
    }
    if q.is_cuda:  # elsewhere this is what injects
        found["concatenated"] = lambda: attention(q_few, k_few, v, renamed, "torch")
    return found


@torch.no_grad()
def bench(options: argparse.Namespace) -> None:
    model = SD15 if options.model == "sd15" else MINIATURE
    heads = model.unet.heads
    shapes = {name: shape for name, shape in sites(model).items() if not options.sites or name in options.sites}
    if not shapes:
        raise InputError(f"sites must be of {', '.join(sites(model))}, got {', '.join(options.sites)}")
    facts = card(options, heads=heads, rounds=options.rounds, injected=options.attention)
    columns = f"{'site':>10} {'rows':>4} {'way':>13} {'median':>10} {'half within':>19} {'of plain':>8}"
    print(f"\n{columns} {'GFLOP':>7} {'MB moved':>9} {'MB peak':>8}" + bool(options.predict) * "   of plain, predicted")
    table, traced = [], {}
    for site, (queries, keys, features) in shapes.items():
        for rows in options.rows:
            torch.manual_seed(0)
            make = {"device": options.device, "dtype": options.dtype}
            q, k, v = (torch.randn(rows, tokens, heads, features, **make) for tokens in (queries, keys, keys))
            shape = Shape(rows, len(set(SOURCES[rows])), queries, keys, heads, features)
            runs = ways(q, k, v, SOURCES[rows], options.attention)
            if 3 * rows * heads * queries * keys * q.element_size() > options.memory * 1e9:
                del runs["materialised"]
                print(f"{site:>10} {rows:>4}  materialised maps would not fit into {options.memory:g} GB")
            times = in_turns(runs, options.rounds, options.device)
            for way, run in runs.items():
                line = {"site": site, "rows": rows, "implementation": way, **spread(times[way])}
                line["ratio_to_plain"] = ratio(times[way], times["plain"])
                need = work(way, shape, q.element_size())
                line |= {"flops": need.flops, "bytes_moved": need.bytes, "peak_bytes": peak_bytes(run, options.device)}
                if options.predict:
                    line["predicted_ratio"] = predicted(way, shape, options.predict)
                table.append(line)
                traced[f"{site}, {rows} rows, {way}"] = run
                _print_attention(line)
    if options.predict:
        print(f"predicted: roofline of an {GPUS[options.predict].name} in half precision, not a measurement")
    if options.plot:
        plot(table, options.plot)
    if options.trace:
        trace(traced, options.trace)
    finish(options, {"card": facts, "table": table})


def predicted(way: str, shape: Shape, gpu: str) -> tuple[float, float]:
    """Time against plain attention on a GPU that is not here, by the roofline: all overlapped, nothing overlapped."""
    pairs = zip(work(way, shape).seconds(GPUS[gpu]), work("plain", shape).seconds(GPUS[gpu]))
    return tuple(round(ours / plain, 3) for ours, plain in pairs)


def _print_attention(line: dict) -> None:
    print(
        f"{line['site']:>10} {line['rows']:>4} {line['implementation']:>13} {line['median_ms']:>7.2f} ms "
        f"{line['low_ms']:>8.2f} –{line['high_ms']:>8.2f} {line['ratio_to_plain']:>8.2f} {line['flops'] / 1e9:>7.2f} "
        f"{line['bytes_moved'] / 1e6:>9.1f} {line['peak_bytes'] / 1e6:>8.1f}"
        + ("   {:.2f} – {:.2f}".format(*sorted(line["predicted_ratio"])) if "predicted_ratio" in line else "")
    )


def plot(table: list[dict], path: Path) -> None:
    """Bars: time against plain attention, by site and way, of the fewest rows measured."""
    from PIL import Image, ImageDraw, ImageFont

    colours = dict(zip(WAYS, ("#8a8578", "#c05a3c", "#d9a441", "#7a9a5b", "#2f7f86")))
    rows = min(line["rows"] for line in table)
    lines = [line for line in table if line["rows"] == rows]
    names = list(dict.fromkeys(line["site"] for line in lines))
    longest = min(3.0, max(line["ratio_to_plain"] for line in lines))
    shown = [way for way in WAYS if any(line["implementation"] == way for line in lines)]
    pitch = 18 * len(shown) + 18  # pixels a site
    image = Image.new("RGB", (860, 70 + len(names) * pitch), "#faf9f5")
    draw, font, left, width = ImageDraw.Draw(image), ImageFont.load_default(15), 130, 640
    draw.text((20, 14), f"Attention of {rows} rows that share a map: time against plain attention", "#3c3832", font)
    for i, name in enumerate(names):
        draw.text((20, 82 + i * pitch), name, "#3c3832", font)
        for line in (line for line in lines if line["site"] == name):
            way, ratio = line["implementation"], line["ratio_to_plain"]
            top = 50 + i * pitch + 18 * shown.index(way)
            end = left + width * min(ratio, longest) / longest
            draw.rectangle((left, top, end, top + 14), colours[way])
            inside = end > left + 330
            label = f"{way} {ratio:.2f}"
            place = (end - 8, top - 2) if inside else (end + 6, top - 2)
            draw.text(place, label, "white" if inside else "#3c3832", font, anchor="ra" if inside else "la")
    image.save(path)
    print(f"{path}: plot")
