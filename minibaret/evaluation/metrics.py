"""The metrics, in one table. Each is a function of a fitted case, the edited picture and the networks that some look
with; None where the case does not have what it needs.

Definitions are PIE-Bench's (Ju et al. 2023, PnPInversion's evaluation), of DiffEdit (Couairon et al. 2022) and of the
BARET paper; units are those that the figures are published in. Background: both pictures black where the edit may
change them, compared over the whole frame.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from PIL import Image

from ..images import psnr, to_pixels
from .cases import Case
from .networks import Networks, library

Pair = tuple[Image.Image, Image.Image]


class Metric(NamedTuple):
    title: str  # of its column, with the unit
    part: str  # of the table
    of: Callable[[Case, Image.Image, Networks], float | bool | None] | None = None  # None: it is no edit's alone
    scale: float = 1.0  # of the column's unit


def success(case: Case, picture: Image.Image, _: Networks) -> bool | None:
    """Whether the right answer is the nearest, by mean squared error, of all answers."""
    if not case.answer:
        return None
    return max(case.answers, key=lambda prompt: psnr(picture, case.answers[prompt])) == case.prompt


def answer_psnr(case: Case, picture: Image.Image, _: Networks) -> float | None:
    return psnr(picture, case.answer) if case.answer else None


def earned(case: Case, picture: Image.Image, networks: Networks) -> float | None:
    """dB against the right answer where the edit is right, else 0: one number to choose the best row by. Without the
    condition one that does nothing would often be the best: it is nearer than one that draws the right thing elsewhere.
    """
    return answer_psnr(case, picture, networks) * success(case, picture, networks) if case.answer else None


def answer_ssim(case: Case, picture: Image.Image, _: Networks) -> float | None:
    return ssim(picture, case.answer) if case.answer else None


def input_psnr(case: Case, picture: Image.Image, _: Networks) -> float:
    return psnr(picture, case.image)


def background_psnr(case: Case, picture: Image.Image, _: Networks) -> float | None:
    pair = background(case, picture)
    return psnr(*pair) if pair else None


def background_ssim(case: Case, picture: Image.Image, _: Networks) -> float | None:
    pair = background(case, picture)
    return ssim(*pair) if pair else None


def background_mse(case: Case, picture: Image.Image, _: Networks) -> float | None:
    pair = background(case, picture)
    return 1e4 * float(np.square(np.subtract(*map(unit, pair))).mean()) if pair else None


def background_lpips(case: Case, picture: Image.Image, networks: Networks) -> float | None:
    pair = background(case, picture)
    return 1e3 * networks.lpips("squeeze", *pair) if pair else None


def one_minus_lpips(case: Case, picture: Image.Image, networks: Networks) -> float:
    return 1 - networks.lpips("alex", picture, case.image)


def structure(case: Case, picture: Image.Image, networks: Networks) -> float:
    """Mean squared difference of the pictures' self-similarities: cosines of the keys, (tokens, tokens), that the last
    layer of DINO ViT-B/8 has of their patches (Tumanyan et al. 2022)."""
    one, other = (F.normalize(networks.keys(each), dim=-1) for each in (picture, case.image))
    return 1e3 * F.mse_loss(one @ one.T, other @ other.T).item()


def clip(case: Case, picture: Image.Image, networks: Networks) -> float:
    return 100 * networks.similarity(picture, case.prompt)


def clip_edited(case: Case, picture: Image.Image, networks: Networks) -> float | None:
    where = case.changing
    return None if where is None else 100 * networks.similarity(blackened(picture, ~where), case.prompt)


def clip_score(case: Case, picture: Image.Image, networks: Networks) -> float:
    """Hessel et al. 2021."""
    return 2.5 * max(networks.similarity(picture, case.prompt), 0.0)


def background(case: Case, picture: Image.Image) -> Pair | None:
    """The edit and the input, black where the edit may change them; None where that is not known, or everywhere."""
    where = case.changing
    return None if where is None or where.all() else (blackened(picture, where), blackened(case.image, where))


def blackened(picture: Image.Image, where: np.ndarray) -> Image.Image:
    return Image.fromarray(np.asarray(picture) * ~where[..., None])


def unit(picture: Image.Image) -> np.ndarray:
    """(H, W, 3) in [0, 1]."""
    return np.asarray(picture, dtype=np.float64) / 255


def ssim(a: Image.Image, b: Image.Image) -> float:
    """Wang et al. 2004, with a Gaussian window of 11 pixels, σ 1.5; the mean of the windows that lie in the picture:
    torchmetrics had it so until September 2024, and PIE-Bench's figures are of 2023."""
    compare = library("torchmetrics.functional.image").structural_similarity_index_measure
    pair = ((to_pixels(each) + 1) / 2 for each in (a, b))
    _, windows = compare(*pair, data_range=1.0, return_full_image=True)
    return windows[..., 5:-5, 5:-5].mean().item()


METRICS = {
    "success": Metric("success, %", "edit", success, 100),
    "answer_psnr": Metric("right answer, dB", "edit", answer_psnr),
    "earned": Metric("right answer where right, else 0 dB", "edit", earned),
    "answer_ssim": Metric("right answer, SSIM", "edit", answer_ssim),
    "clip": Metric("CLIP", "edit", clip),
    "clip_edited": Metric("CLIP, edited region", "edit", clip_edited),
    "clip_score": Metric("CLIPScore", "edit", clip_score),
    "fid": Metric("FID", "edit"),  # of a set
    "background_psnr": Metric("background, dB", "input", background_psnr),
    "background_ssim": Metric("background, SSIM", "input", background_ssim),
    "background_mse": Metric("background, MSE × 10⁴", "input", background_mse),
    "background_lpips": Metric("background, LPIPS × 10³", "input", background_lpips),
    "input_psnr": Metric("input, dB", "input", input_psnr),
    "one_minus_lpips": Metric("1 − LPIPS", "input", one_minus_lpips),
    "structure": Metric("structure distance × 10³", "input", structure),
    # What the edit itself tells, see `scoring.score`.
    "seconds": Metric("seconds", "cost"),
    "row_forwards": Metric("row-forwards", "cost"),
    "gradient_passes": Metric("gradient passes", "cost"),
    "loss": Metric("loss × 10⁵", "cost", scale=1e5),
    "reconstruction_psnr": Metric("reconstruction, dB", "cost"),
    "reconstruction_vae_psnr": Metric("reconstruction against the VAE's, dB", "cost"),
    "reconstructed": Metric("reconstructed, %", "cost", scale=100),
}
