"""How fast it is, and what the limit is. Every sub-command prints a card, then a table measured in turns, and with
--json one line of JSON last.

    python bench.py attention                         injected attention against plain, at Stable Diffusion 1.5's sites
    python bench.py attention --model miniature       the same in seconds
    python bench.py unet --weights sd15-random        one forward with and without injection
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would chat on stderr

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from minibaret import balanced_attention as bam
from minibaret.errors import InputError
from minibaret.kernels import attention
from minibaret.kernels.roofline import GPUS, Shape, work
from minibaret.models.configs import MINIATURE, SD15, ModelConfig
from minibaret.models.unet import NO_INJECTION, Attention, UNet
from minibaret.settings import Settings

# What every sub-command uses


def card(options: argparse.Namespace, **more) -> dict:
    """Prints and returns what the figures were measured on."""
    facts = {
        "device": torch.cuda.get_device_name(options.device) if options.device.type == "cuda" else _processor(),
        "dtype": str(options.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        **more,
    }
    for name, value in facts.items():
        print(f"{name:>12}  {value}")
    return facts


def in_turns(ways: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Milliseconds a call: every way once or more a round, in turn, so that a busy moment hits all of them."""
    calls = {}
    for name, run in ways.items():
        took = _milliseconds(run, 1, device)  # allocates, compiles
        took = took if took > 1000 else _milliseconds(run, 1, device)
        calls[name] = max(1, min(100, int(5 / max(took, 1e-3))))  # 5 ms at least
    times = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            times[name].append(_milliseconds(run, calls[name], device))
    return times


def spread(times: list[float]) -> dict:
    """The median, and half of the measurements lie between the other two."""
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return {"median_ms": round(middle, 4), "low_ms": round(low, 4), "high_ms": round(high, 4)}


def ratio(times: list[float], plain: list[float]) -> float:
    return round(statistics.median(times) / statistics.median(plain), 4)


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Memory allocated at most while it runs, above what there was before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def trace(runs: dict[str, Callable[[], object]], path: Path) -> None:
    """Runs everything once more, under the profiler, and writes a Chrome trace with a named range for each."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with profile(activities=activities) as profiled:
        for name, run in runs.items():
            with record_function(name):
                run()
    profiled.export_chrome_trace(str(path))
    print(f"{path}: Chrome trace; open it at chrome://tracing or ui.perfetto.dev")


def finish(options: argparse.Namespace, result: dict) -> None:
    if options.json:
        print(json.dumps(result))


def _milliseconds(run: Callable[[], object], calls: int, device: torch.device) -> float:
    _synchronize(device)
    begin = time.perf_counter()
    for _ in range(calls):
        run()
    _synchronize(device)
    return (time.perf_counter() - begin) / calls * 1e3


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "CPU"


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


# attention

SOURCES = {  # by rows: who takes whose map, as in BARET's batches
    2: (0, 0),  # the edit takes the reconstruction's
    3: (0, 1, 0),  # reconstruction, edit without text, edit
    6: (0, 1, 2, 3, 4, 1),  # all three processes, without and with text
}
WAYS = ("plain", "materialised", "gathered", "concatenated", "injected")
TEXT = 77  # tokens


def sites(model: ModelConfig) -> dict[str, tuple[int, int, int]]:
    """(queries, keys, features) of the attention sites, by name: self-4096, cross-4096, …"""
    found = {}
    latents = model.image_size // 2 ** (len(model.vae.channels) - 1)
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
        """Prompt-to-prompt's way: every map exists, the takers' are replaced."""
        maps = torch.einsum("bnhd,bmhd->bhnm", q, k).mul_(q.shape[-1] ** -0.5).softmax(-1)
        for row, taken in enumerate(source):
            if row != taken:
                maps[row] = maps[taken]
        return torch.einsum("bhnm,bmhd->bnhd", maps, v)

    found = {
        "plain": lambda: attention(q, k, v, None, "torch"),
        "materialised": materialised,
        "gathered": lambda: attention(q[list(source)], k[list(source)], v, None, "torch"),
        "injected": lambda: attention(q_few, k_few, v, renamed, implementation),
    }
    if q.is_cuda:  # elsewhere this is what injects
        found["concatenated"] = lambda: attention(q_few, k_few, v, renamed, "torch")
    return found


@torch.no_grad()
def bench_attention(options: argparse.Namespace) -> None:
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


# unet


@torch.no_grad()
def bench_unet(options: argparse.Namespace) -> None:
    unet, config = build_unet(options)
    size = options.size or config.image_size
    if size < config.size_multiple or size % config.size_multiple:
        raise InputError(f"size must be a multiple of {config.size_multiple} pixels, got {size}")
    side = size // 2 ** (len(config.vae.channels) - 1)
    settings = Settings()
    six, few = bam.all_rows(0, settings), bam.rows_at(0, settings)
    batches = {
        "six rows, no injection": (six, NO_INJECTION),
        "six rows, injection": (six, bam.injection(six, 0, settings)),
        "retired plan, injection": (few, bam.injection(few, 0, settings)),
    }
    parameters = sum(weight.numel() for weight in unet.parameters())
    facts = card(options, weights=str(options.weights), parameters=parameters, latents=f"{side}×{side}")

    def forward(rows: tuple[bam.Row, ...], injection) -> Callable[[], Tensor]:
        torch.manual_seed(0)
        make = {"device": options.device, "dtype": options.dtype}
        latents = torch.randn(len(rows), config.unet.latent_channels, side, side, **make)
        context = torch.randn(len(rows), TEXT, config.unet.context_width, **make)
        return lambda: unet(latents, torch.tensor(501, device=options.device), context, injection)

    runs = {name: forward(*batch) for name, batch in batches.items()}
    times = in_turns(runs, options.rounds, options.device)
    table, shares = [], {}
    print(f"\n{'forward':>24} {'rows':>4} {'median':>11} {'half within':>21} {'of the first':>12} {'MB peak':>8}")
    for name, values in times.items():
        line = {"forward": name, "rows": len(batches[name][0]), **spread(values)}
        line["ratio_to_plain"] = ratio(values, times["six rows, no injection"])

        def once_more(name: str = name) -> None:
            shares[name] = site_shares(unet, runs[name], options.device)

        line["peak_bytes"] = peak_bytes(once_more, options.device)
        table.append(line)
        print(
            f"{name:>24} {line['rows']:>4} {line['median_ms']:>8.1f} ms {line['low_ms']:>9.1f} –"
            f"{line['high_ms']:>9.1f} {line['ratio_to_plain']:>12.3f} {line['peak_bytes'] / 1e6:>8.0f}"
        )
    print(f"\n{'share of the forward, with projections':>40}" + "".join(f"{name:>26}" for name in runs))
    for site in next(iter(shares.values())):
        print(f"{site:>40}" + "".join(f"{shares[name][site]:>26.1%}" for name in runs))
    if options.trace:
        with site_ranges(unet):
            trace({f"{name}: {_processes(batches[name][0])}": run for name, run in runs.items()}, options.trace)
    finish(options, {"card": facts, "table": table, "shares": shares})


def _processes(rows: tuple[bam.Row, ...]) -> str:
    return ", ".join(f"{row.process}{'' if row.conditional else ' (no text)'}" for row in rows)


def build_unet(options: argparse.Namespace) -> tuple[UNet, ModelConfig]:
    """A folder's UNet, or one with random weights: "sd15-random", "miniature-random"."""
    from minibaret.weights import MINIATURE_FOLDER, load_model

    random = {"sd15-random": SD15, "miniature-random": MINIATURE}.get(str(options.weights))
    if random is None:
        folder = MINIATURE_FOLDER if str(options.weights) == "miniature" else options.weights
        model = load_model(Path(folder), options.device, options.dtype)
        return model.unet, model.config
    torch.manual_seed(0)
    with torch.device(options.device):
        return UNet(random.unet).to(options.dtype).requires_grad_(False).eval(), random


def attention_sites(unet: UNet) -> dict[str, Attention]:
    return {name: module for name, module in unet.named_modules() if isinstance(module, Attention)}


@contextlib.contextmanager
def site_ranges(unet: UNet):
    """Names every attention site's time in a trace."""
    open_ranges, handles = [], []

    def enter(name: str) -> None:
        open_ranges.append(record_function(name))
        open_ranges[-1].__enter__()

    for name, site in attention_sites(unet).items():
        handles.append(site.register_forward_pre_hook(lambda *_, name=name: enter(name)))
        handles.append(site.register_forward_hook(lambda *_: open_ranges.pop().__exit__(None, None, None)))
    yield
    for handle in handles:
        handle.remove()


def site_shares(unet: UNet, run: Callable[[], object], device: torch.device) -> dict[str, float]:
    """The part of one forward's time that each kind of site takes, by its number of tokens; projections included."""
    begun, spent, handles = [], {}, []

    def enter(*_) -> None:
        _synchronize(device)
        begun.append(time.perf_counter())

    def leave(site: Attention, inputs: tuple, _) -> None:
        _synchronize(device)
        x, context = inputs[:2]
        name = f"{'self' if context is x else 'cross'}-{x.shape[1]}"
        spent[name] = spent.get(name, 0.0) + time.perf_counter() - begun.pop()

    for site in attention_sites(unet).values():
        handles += [site.register_forward_pre_hook(enter), site.register_forward_hook(leave)]
    whole = _milliseconds(run, 1, device) / 1e3
    for handle in handles:
        handle.remove()
    return {name: round(seconds / whole, 4) for name, seconds in sorted(spent.items(), key=lambda item: -item[1])}


# The command line


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.py", description="How fast minibaret is on this machine.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    command = _command(commands, "attention", bench_attention, "injected attention against plain, site by site")
    command.add_argument("--model", choices=("sd15", "miniature"), default="sd15", help="whose shapes, default sd15")
    command.add_argument("--sites", nargs="+", metavar="SITE", help="such as self-4096 cross-4096; all if not given")
    command.add_argument("--rows", nargs="+", type=int, choices=SOURCES, default=list(SOURCES), help="default all")
    command.add_argument("--attention", default="auto", help="implementation that injects: auto, torch, triton")
    command.add_argument("--memory", type=float, default=6, help="GB that materialised maps may take, default 6")
    command.add_argument("--rounds", type=int, default=9, help="default %(default)s")
    command.add_argument("--predict", choices=GPUS, default="", help="also print the roofline's ratio on this GPU")
    command.add_argument("--plot", type=Path, help="draw the ratios to a picture file")

    command = _command(commands, "unet", bench_unet, "one forward with and without injection")
    command.add_argument("--weights", default="miniature", help="a folder, miniature, miniature-random, sd15-random")
    command.add_argument("--size", type=int, help="pixels, the side of the picture; the model's own if not given")
    command.add_argument("--rounds", type=int, default=3, help="default %(default)s")

    options = parser.parse_args(arguments)
    try:
        options.device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        options.dtype = getattr(torch, options.dtype or ("float16" if options.device.type == "cuda" else "float32"))
        options.run(options)
    except (InputError, ValueError, RuntimeError) as error:
        print(f"bench.py: {error}", file=sys.stderr)
        return 2
    return 0


def _command(commands, name: str, run: Callable, what: str) -> argparse.ArgumentParser:
    """A sub-command with the options that all of them have."""
    command = commands.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".")
    command.add_argument("--device", help="cpu, cuda, cuda:1, …")
    command.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="default float16 on CUDA")
    command.add_argument("--json", action="store_true", help="print one line of JSON last")
    command.add_argument("--trace", type=Path, help="write a Chrome trace of the same run")
    command.set_defaults(run=run)
    return command


if __name__ == "__main__":
    sys.exit(main())
