"""Attention whose rows take from one another, against plain attention, at every layer's shape.

Three cases: BARET's edit takes another row's map, MasaCtrl's another row's keys and values, and prompt-to-prompt's
refinement a mixture, word by word, of another row's map and its own. All ways but "plain" compute the same.
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from ..kernels import attention
from ..models.configs import SD15, ModelConfig
from ..weights.miniature.config import MINIATURE
from . import common, naive
from .roofline import GPUS, Shape, work

MAPS = {  # by rows: whose map each row takes, in BARET's batches
    2: (0, 0),  # the edit takes the reconstruction's
    3: (0, 1, 0),  # reconstruction, edit without its prompt, edit
    6: (0, 1, 2, 3, 4, 1),  # all three branches, without and with their prompts
}


class LayerShape(NamedTuple):
    queries: int
    keys: int
    heads: int
    features: int


def layer_shapes(model: ModelConfig) -> dict[str, LayerShape]:
    """By name: self-4096, cross-4096, …"""
    found, heads = {}, model.unet.heads
    latents, middle = model.image_size // model.latent_factor, len(model.unet.channels) - 1
    for level, width in enumerate(model.unet.channels):
        if model.unet.attention[level] or level == middle:
            tokens = (latents >> level) ** 2
            found[f"self-{tokens}"] = LayerShape(tokens, tokens, heads, width // heads)
            found[f"cross-{tokens}"] = LayerShape(tokens, common.TOKENS, heads, width // heads)
    return dict(sorted(found.items(), key=lambda item: (item[0].startswith("cross"), -item[1].queries)))


def ways(
    case: str, rows: int, layer: LayerShape, device: torch.device, dtype: torch.dtype, implementation: str = "auto"
) -> tuple[Shape, dict[str, Callable[[], Tensor]]]:
    """How much there is to compute, and the ways to do it, each (B, N, H, D).

    plain: every row attends to itself; materialised: as published, every row's map in memory, and changed there;
    gathered: queries, keys and values copied to a row for each term, plain attention, the terms summed; concatenated:
    on a GPU, values that share a map side by side in one call of SDPA; injected: the named implementation.
    """
    torch.manual_seed(0)
    make = {"device": device, "dtype": dtype}
    q, k, v = (torch.randn(rows, tokens, *layer[2:], **make) for tokens in (layer.queries, layer.keys, layer.keys))
    words = torch.arange(layer.keys, device=device)
    places, alpha = (words - 1).clamp(0), (words % 8 != 1).to(dtype)  # the second of eight words is new, others moved
    takes = {
        "maps": [[(row, row, own)] for own, row in enumerate(MAPS[rows])],
        "keys and values": [[(row, 0, 0)] for row in range(rows)],
        "refine": [[(0, 0, 0)], [(0, 0, 2), (1, 1, 3)]],
    }[case]

    mixed = [(words[:, None] == places) * alpha, torch.diag(1 - alpha)]  # P diag(α) with P[m(j), j] = 1; diag(1 − α)

    def values() -> Tensor:
        """To refine, also the edit's by the words of each term: A[:, m] diag(α) V = A (P diag(α) V)."""
        if case != "refine":
            return v
        return torch.stack([*v, *(torch.einsum("mn,nhd->mhd", word, v[1]) for word in mixed)])

    def materialised() -> Tensor:
        if case == "maps":
            return naive.materialised(q, k, v, MAPS[rows])
        keys, found = (x[:1].expand_as(x) for x in (k, v)) if case == "keys and values" else (k, v)
        maps = naive.attention_maps(q, keys)
        if case == "refine":
            maps[1] = maps[0][..., places] * alpha + maps[1] * (1 - alpha)
        return naive.apply(maps, found)

    def gathered() -> Tensor:
        terms, sources = [take for terms in takes for take in terms], (q, k, values())
        out = naive.gathered(*(torch.cat([x[take[i]][None] for take in terms]) for i, x in enumerate(sources)))
        return out if case != "refine" else torch.stack([out[0], out[1] + out[2]])

    found = {"plain": lambda: naive.gathered(q, k, v), "materialised": materialised, "gathered": gathered}
    if device.type == "cuda":  # elsewhere it is what injects
        found["concatenated"] = lambda: attention(q, k, values(), takes, "torch")
    found["injected"] = lambda: attention(q, k, values(), takes, implementation)
    maps = {take[:2] for terms in takes for take in terms}
    return Shape(rows, len(maps), sum(map(len, takes)), *layer), found


@torch.no_grad()
def bench(options: argparse.Namespace) -> None:
    model = SD15 if options.model == "sd15" else MINIATURE
    shapes = layer_shapes(model)
    chosen = {name: layer for name, layer in shapes.items() if not options.sites or name in options.sites}
    if not chosen:
        raise InputError(f"sites must be of {', '.join(shapes)}, got {', '.join(options.sites)}")
    facts = common.card(options, heads=model.unet.heads, rounds=options.rounds, injected=options.attention)
    lines, traced = [], {}
    for name, layer in chosen.items():
        other = "refine" if layer.keys == common.TOKENS else "keys and values"  # MasaCtrl leaves words alone
        for case, rows in [*(("maps", rows) for rows in options.rows), *[(other, 2)] * (2 in options.rows)]:
            shape, runs = ways(case, rows, layer, options.device, options.dtype, options.attention)
            if 3 * rows * layer.heads * layer.queries * layer.keys * options.dtype.itemsize > options.memory * 1e9:
                del runs["materialised"]
            times = common.timed(common.in_turns(runs, options.rounds, options.device), "plain")
            for way, run in runs.items():
                need = work(way, shape, options.dtype.itemsize)
                line = {"site": name, "case": case, "rows": rows, "implementation": way, **times[way]}
                line |= {"flops": need.flops, "bytes_moved": need.bytes}
                line["peak_bytes"] = common.peak_bytes(run, options.device)
                lines.append(line | (predicted(way, shape, options.predict) if options.predict else {}))
                traced[f"{name}, {case}, {rows} rows, {way}"] = run
    if options.predict:
        print(f"predicted: roofline of an {GPUS[options.predict].name} in half precision, not a measurement")
    common.finish(options, facts, lines, traced)


def predicted(way: str, shape: Shape, gpu: str) -> dict:
    """By the roofline of a GPU: time against plain attention, if everything overlapped and if nothing did, and what
    takes longest."""
    need, plain = work(way, shape), work("plain", shape)
    pairs = zip(need.seconds(GPUS[gpu]), plain.seconds(GPUS[gpu]))
    return {"predicted_ratio": sorted(round(a / b, 3) for a, b in pairs), "bound": need.bound(GPUS[gpu])}
