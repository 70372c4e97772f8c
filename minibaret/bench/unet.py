"""One forward of the UNet with and without injection, and each site's share of it."""

import argparse
import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from .. import balanced_attention as bam
from ..errors import InputError
from ..models.configs import MINIATURE, SD15, ModelConfig
from ..models.injection import NO_INJECTION
from ..models.unet import Attention, UNet
from ..settings import Settings
from ..weights import MINIATURE_FOLDER, load_model
from .common import card, finish, in_turns, milliseconds, peak_bytes, ratio, spread, synchronize, trace

TEXT = 77  # tokens


@torch.no_grad()
def bench(options: argparse.Namespace) -> None:
    unet, config = build_unet(options)
    side = latents_side(options, config)
    settings = Settings()
    six, few = bam.all_rows(0, settings), bam.rows_at(0, settings)
    batches = {
        "six rows, no injection": (six, NO_INJECTION),
        "six rows, injection": (six, bam.injection(six, 0, settings)),
        "retired plan, injection": (few, bam.injection(few, 0, settings)),
    }
    parameters = count_parameters(unet)
    facts = card(options, weights=str(options.weights), parameters=parameters, latents=f"{side}×{side}")

    def forward(rows: tuple[bam.Row, ...], injection) -> Callable[[], Tensor]:
        torch.manual_seed(0)
        make = {"device": options.device, "dtype": options.dtype}
        latents = torch.randn(len(rows), config.unet.latent_channels, side, side, **make)
        text = unet.project_text(torch.randn(len(rows), TEXT, config.unet.context_width, **make))
        timestep = torch.tensor(501, device=options.device)
        return lambda: unet(latents, timestep, text, injection)

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
    random = {"sd15-random": SD15, "miniature-random": MINIATURE}.get(str(options.weights))
    if random is None:
        folder = MINIATURE_FOLDER if str(options.weights) == "miniature" else options.weights
        model = load_model(Path(folder), options.device, options.dtype)
        return model.unet, model.config
    torch.manual_seed(0)
    with torch.device(options.device):
        return UNet(random.unet).to(options.dtype).requires_grad_(False).eval(), random


def latents_side(options: argparse.Namespace, config: ModelConfig) -> int:
    """Of the latents of a picture of the size asked for. Raises InputError for one that does not halve evenly."""
    size = options.size or config.image_size
    if size < config.size_multiple or size % config.size_multiple:
        raise InputError(f"size must be a multiple of {config.size_multiple} pixels, got {size}")
    return size // config.latent_factor


def count_parameters(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


def is_slow(network: nn.Module) -> bool:
    """Whether one forward takes seconds, so that few must do."""
    return count_parameters(network) > 100_000_000 and next(network.parameters()).device.type == "cpu"


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
        synchronize(device)
        begun.append(time.perf_counter())

    def leave(site: Attention, inputs: tuple, _) -> None:
        synchronize(device)
        x, text = inputs[:2]
        name = f"{'self' if text is None else 'cross'}-{x.shape[1]}"
        spent[name] = spent.get(name, 0.0) + time.perf_counter() - begun.pop()

    for site in attention_sites(unet).values():
        handles += [site.register_forward_pre_hook(enter), site.register_forward_hook(leave)]
    whole = milliseconds(run, 1, device) / 1e3
    for handle in handles:
        handle.remove()
    return {name: round(seconds / whole, 4) for name, seconds in sorted(spent.items(), key=lambda item: -item[1])}
