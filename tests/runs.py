"""What tests of whole runs share: prompts, quick knobs, and what it takes for two runs to be the same, or nearly."""

from collections.abc import Generator

import torch
from torch import Tensor

import minibaret
from minibaret.cli import main
from minibaret.models.unet import UNet

PROMPT, OTHER = "a brown dog lying down on grass", "a brown dog sitting on grass"
QUICK = {"guidance": 7.5, "inversion_prompt": "target", "steps": 4, "inner_steps": 2, "tolerance": (0.0, 0.0)}
BRIEF = {"steps": 2, "inner_steps": 1}


def sharpened(unet: UNet) -> UNet:
    """The UNet, its random weights made such that attention maps are not nearly flat: to replace one is then seen."""
    for name, weight in unet.named_parameters():
        if name.endswith(("to_q.weight", "to_k.weight")):
            weight *= 4
    return unet


def drain(work: Generator) -> tuple[list, object]:
    """All that a generator yields, and what it returns."""
    yielded = []
    while True:
        try:
            yielded.append(next(work))
        except StopIteration as end:
            return yielded, end.value


def assert_same_edit(a: minibaret.Result, b: minibaret.Result) -> None:
    """Bit for bit."""
    assert_same_inversion(a.kept, b.kept)
    assert a.latents.keys() == b.latents.keys() and a.images.keys() == b.images.keys()
    assert all(torch.equal(a.latents[name], b.latents[name]) for name in a.latents)
    assert all(a.images[name].tobytes() == b.images[name].tobytes() for name in a.images)


def assert_same_inversion(a: minibaret.Inversion, b: minibaret.Inversion) -> None:
    for name in ("trajectory", "target embeddings"):
        assert len(a.items(name)) == len(b.items(name)) > 0
        for x, y in zip(a.items(name), b.items(name)):
            assert len(x) == len(y) and all(torch.equal(p, q) for p, q in zip(x, y))


def error(ours: Tensor, theirs: Tensor) -> float:
    """Root mean square of the difference, relative to theirs."""
    assert ours.shape == theirs.shape and ours.isfinite().all()
    return ((ours.double() - theirs.double()).square().mean() / theirs.double().square().mean()).sqrt().item()


def stop_after(step: int):
    """A watcher that presses Ctrl-C once so many steps are done."""
    seen = []

    def watch(_) -> None:
        seen.append(1)
        if len(seen) == step:
            raise KeyboardInterrupt

    return watch


def refused(capsys, *arguments) -> str:
    """The one sentence that the command ends with; nothing else may be said."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as end:  # argparse
        code = end.code
    said = capsys.readouterr()
    assert code == 2 and said.out == ""
    sentence = said.err.strip().splitlines()[-1]
    assert sentence.startswith("minibaret") and "Traceback" not in said.err and "usage:" not in said.err
    return sentence
