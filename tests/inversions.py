"""What tests of inversions share: quick settings, and what it takes for two runs to be the same."""

import torch

import minibaret

TEXT, OTHER = "a brown dog lying down on grass", "a brown dog sitting on grass"


def quick(editor, **changes) -> minibaret.Settings:
    paper = {"guidance": 7.5, "inversion_text": "target"}
    return editor.settings(**{**paper, "steps": 4, "inner_steps": 2, "tolerance": (0.0, 0.0), **changes})


def assert_same_edit(a: minibaret.Result, b: minibaret.Result) -> None:
    assert torch.equal(a.record.latents["edit"], b.record.latents["edit"])
    assert_same_inversion(a.record, b.record)
    for name in ("image", "reconstruction", "transition"):
        assert getattr(a, name).tobytes() == getattr(b, name).tobytes()


def assert_same_inversion(a, b) -> None:
    assert len(a.trajectory) == len(b.trajectory) and len(a.tuned) == len(b.tuned)
    assert all(torch.equal(x, y) for x, y in zip(a.trajectory, b.trajectory))
    for x, y in zip(a.tuned, b.tuned):
        assert torch.equal(x.embedding, y.embedding) and torch.equal(x.latents, y.latents) and x.losses == y.losses


def stop_after(step: int):
    """A watcher that presses Ctrl-C once so many steps are done."""
    seen = []

    def watch(_) -> None:
        seen.append(1)
        if len(seen) == step:
            raise KeyboardInterrupt

    return watch
