"""What the edit saves changes nothing: texts projected once, rows in pieces, no gradient and no wait too many."""

import dataclasses
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import minibaret
from minibaret import balanced_attention as bam
from minibaret import baret
from minibaret.errors import InputError
from minibaret.inversion import TunedStep, ddim_invert, tune_text
from minibaret.maps import MapCollector, MapRequest
from minibaret.models.unet import Attention, join_texts
from minibaret.prediction import no_tf32
from minibaret.schedule import Schedule
from minibaret.settings import Settings

SHORT = Settings(steps=4, guidance=3.0, inner_steps=1, learning_rate=1e-2, tolerance=(0.0, 0.0))


def texts():
    return torch.randn(1, 5, 24), torch.randn(1, 5, 24)


def finish(generator):
    while True:
        try:
            next(generator)
        except StopIteration as end:
            return end.value


def projections(unet) -> dict[str, int]:
    """Counts, from now on, the rows that each projection of an attention site is given, by kind of site."""
    counts = dict.fromkeys((f"{site}.{layer}" for site in ("attn1", "attn2") for layer in ("to_q", "to_k", "to_v")), 0)

    def count(name):
        return lambda layer, inputs: counts.__setitem__(name, counts[name] + inputs[0].shape[0])

    for path, layer in unet.named_modules():
        name = ".".join(path.split(".")[-2:])
        if name in counts:
            layer.register_forward_pre_hook(count(name))
    return counts


# Texts


def test_a_projected_text_is_the_text(unet):
    latents, context = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 24)
    plain = unet(latents, torch.tensor(7), context)
    assert torch.equal(unet(latents, torch.tensor(7), unet.project_text(context)), plain)
    joined = join_texts([unet.project_text(row) for row in context.split(1)])
    assert torch.allclose(unet(latents, torch.tensor(7), joined), plain, atol=1e-6)


def test_texts_are_projected_in_the_order_of_the_forward(unet):
    """Every cross-attention site is handed the keys that its own weights make."""
    context, seen = torch.randn(1, 5, 24), []
    for site in unet.modules():
        if isinstance(site, Attention):
            site.register_forward_hook(lambda site, inputs, out: seen.append((site, inputs[1])))
    unet(torch.randn(1, 4, 8, 8), torch.tensor(7), unet.project_text(context))
    crossed = [(site, text) for site, text in seen if text is not None]
    assert len(crossed) == 4 and len(seen) == 8
    assert all(torch.equal(text[0].flatten(2), site.to_k(context)) for site, text in crossed)


def test_every_text_is_projected_once_and_injected_rows_project_neither_queries_nor_keys(unet):
    settings = dataclasses.replace(SHORT, self_steps=0.5, cross_steps=0.75)
    target, null = texts()
    record = finish(baret.run(unet, torch.randn(1, 4, 8, 8), target, null, settings))
    counts, sites = projections(unet), 4
    work = baret.edit(unet, record, target, null, settings)
    found = []
    for _ in work:
        found.append({name: rows / sites for name, rows in counts.items()})
        counts.update(dict.fromkeys(counts, 0))
    rows = [len(bam.rows_at(step, settings)) for step in range(4)]
    assert rows == [5, 5, 4, 2]
    assert [step["attn1.to_v"] for step in found] == rows  # values are always the row's own
    assert [step["attn1.to_q"] for step in found] == [4, 4, 4, 2]  # all but the edit's while it is injected
    assert [step["attn1.to_k"] for step in found] == [4, 4, 4, 2]
    assert [step["attn2.to_q"] for step in found] == [4, 4, 3, 2]
    # E[i] and e_tr[i] at every step that has their rows; the empty text and the target before the first
    assert [step["attn2.to_k"] for step in found] == [4, 2, 1, 0]
    assert [step["attn2.to_v"] for step in found] == [4, 2, 1, 0]


def test_inversion_projects_its_constant_texts_once(unet):
    target, null = texts()
    start, counts, sites = torch.randn(1, 4, 8, 8), projections(unet), 4
    trajectory = [start, *ddim_invert(unet, start, target, Schedule(4))]
    assert counts["attn2.to_k"] == sites and counts["attn2.to_q"] == 4 * sites
    counts.update(dict.fromkeys(counts, 0))
    tuned = list(tune_text(unet, trajectory, target, null, Schedule(4), SHORT))
    forwards = sum(len(step.losses) for step in tuned)
    assert forwards == 8 and counts["attn2.to_k"] == (1 + forwards) * sites  # the empty text once
    assert counts["attn2.to_q"] == (4 + forwards) * sites  # ε_null once a step


class Waits(TorchDispatchMode):
    """Counts the numbers that are read out of tensors, and the lists of indices that are made tensors: for each, the
    CPU would wait for a GPU."""

    count = 0
    operators = ("aten::_local_scalar_dense", "aten::index", "aten::index_put_", "aten::nonzero")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function._schema.name in self.operators
        return function(*args, **(kwargs or {}))


def test_only_the_loss_is_waited_for(unet):
    target, null = texts()
    record = baret.Record([torch.randn(1, 4, 8, 8)])
    with Waits() as waits:
        assert torch.ones(2)[[0]].item() == 1 and waits.count == 2
    with Waits() as waits:
        record.trajectory += ddim_invert(unet, record.trajectory[0], target, Schedule(4))
        assert waits.count == 0
        record.tuned += tune_text(unet, record.trajectory, target, null, Schedule(4), SHORT)
        assert waits.count == sum(len(step.losses) for step in record.tuned)
    for max_rows in (None, 1):
        with Waits() as waits:
            finish(baret.edit(unet, record, target, null, SHORT, max_rows=max_rows))
        assert waits.count == 0


# Rows in pieces


@pytest.mark.parametrize(("rows", "rigid"), [("cond", False), ("both", False), ("cond", True)])
def test_rows_in_pieces_give_the_batchs_edit(editor, rows, rigid):
    """On the miniature, each step of one kind: both sites injected, the cross-attention only, none."""
    settings = dataclasses.replace(SHORT, steps=3, self_steps=1 / 3, cross_steps=2 / 3, rows=rows, rigid=rigid)
    unet, target, null = editor.model.unet, editor.embed("a cat"), editor.embed("", allow_empty=True)
    trajectory = list(torch.randn(4, 1, 4, 8, 8))
    tuned = [TunedStep(target + 0.1 * torch.randn_like(target), latents, (0.0,)) for latents in trajectory[:3]]
    record = baret.Record(trajectory, tuned)
    *_, whole = baret.edit(unet, record, target, null, settings, ("transition",))
    batches = []
    handle = unet.register_forward_pre_hook(lambda unet, inputs: batches.append(inputs[0].shape[0]))
    for max_rows in (1, 2, 3):
        batches.clear()
        *_, pieces = baret.edit(unet, record, target, null, settings, ("transition",), max_rows=max_rows)
        assert max(batches) == max_rows
        for process in bam.PROCESSES:
            assert (pieces[process] - whole[process]).norm() < 1e-4 * whole[process].norm(), (process, max_rows)
    handle.remove()


def test_only_what_later_rows_take_is_carried_and_nothing_is_left(unet):
    target, context = texts()
    rows = bam.rows_at(0, SHORT)
    plan, latents = bam.injection(rows, 0, SHORT), torch.randn(1, 4, 8, 8)
    for first, row in enumerate(rows):
        text = target if row.conditional else context
        unet(latents, torch.tensor(7), text, dataclasses.replace(plan, first=first))
        carried = [site in plan.carry for site in unet.modules() if isinstance(site, Attention)]
        itself, cross = carried[0::2], carried[1::2]
        last = first == len(rows) - 1
        assert all(itself) if not last else not any(itself)  # the reconstruction's, from the first row on
        assert all(cross) if 2 <= first < 4 else not any(cross)  # the transition's, from the third
    assert not plan.carry


def test_pieces_do_not_matter_to_the_maps(unet):
    target, null = texts()
    record = finish(baret.run(unet, torch.randn(1, 4, 8, 8), target, null, SHORT))
    found = []
    for max_rows in (None, 1, 2):
        maps = MapCollector(MapRequest(("dog",), ((3, 60),)), [[1]], (8, 8), 8)
        finish(baret.edit(unet, record, target, null, SHORT, collector=maps, max_rows=max_rows))
        found.append(maps.maps)
    for pieces in found[1:]:
        for kind in ("words", "points"):
            a, b = getattr(found[0], kind), getattr(pieces, kind)
            assert a.keys() == b.keys()
            for step in a:
                assert set(a[step]) == set(b[step]) == set(bam.PROCESSES)
                assert all(torch.allclose(a[step][name], b[step][name], atol=1e-5) for name in a[step])


@pytest.mark.parametrize("max_rows", [0, -1, 1.5, "two"])
def test_max_rows_is_a_whole_number(max_rows):
    with pytest.raises(InputError, match="max rows must be a whole number, at least 1, got"):
        minibaret.Savings(max_rows=max_rows)


# Target-text inversion


def test_no_graph_outside_the_inner_loop(unet):
    target, null = texts()
    start, graphs = torch.randn(1, 4, 8, 8), []
    trajectory = [start, *ddim_invert(unet, start, target, Schedule(4))]
    unet.register_forward_hook(lambda unet, inputs, out: graphs.append(out.requires_grad))
    list(tune_text(unet, trajectory, target, null, Schedule(4), SHORT))
    assert graphs == [False, True, False] * 4  # ε_null; with the embedding; the last one, for the latents only
    graphs.clear()
    list(tune_text(unet, trajectory, target, null, Schedule(4), dataclasses.replace(SHORT, tolerance=(1e9, 0.0))))
    assert graphs == [False, True] * 4  # near enough: no second evaluation


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_tunes_the_same_text(unet, dtype):
    """With the paper's learning rate, whose steps are lost where the embedding itself is of half precision, and a loss
    whose gradient is nothing in float16 unless it is scaled."""
    settings = dataclasses.replace(SHORT, inner_steps=5, learning_rate=1e-3)
    target, null = texts()
    start = torch.randn(1, 4, 8, 8)
    trajectory = [start, *ddim_invert(unet, start, target, Schedule(4))]
    near = [0.999 * latents + 0.001 * start for latents in trajectory]
    whole = list(tune_text(unet, near, target, null, Schedule(4), settings))
    unet.to(dtype)
    half = list(tune_text(unet, near, target.to(dtype), null.to(dtype), Schedule(4), settings))
    assert all(step.embedding.dtype == torch.float32 and step.embedding.isfinite().all() for step in half)
    moved = [(step[0].embedding - target).flatten() for step in (whole, half)]
    assert torch.nn.functional.cosine_similarity(*moved, dim=0) > 0.9


NEWER = hasattr(torch.backends.cuda.matmul, "fp32_precision")  # switches, from PyTorch 2.9 on
TF32 = """
import torch
from minibaret.prediction import no_tf32

def chosen():
    return [torch.backends.fp32_precision, torch.backends.cuda.matmul.fp32_precision,
            torch.backends.cudnn.conv.fp32_precision, torch.backends.cudnn.allow_tf32]

{}
before = chosen()
with no_tf32():
    inside = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
assert inside == ("ieee", "ieee"), inside
assert chosen() == before, (before, chosen())
"""


@pytest.mark.skipif(not NEWER, reason="PyTorch before 2.9 has the older switches only")
@pytest.mark.parametrize(
    "asked",
    [
        "",
        "torch.backends.fp32_precision = 'tf32'",
        "torch.set_float32_matmul_precision('high')",
        "torch.set_float32_matmul_precision('medium')",
        "torch.backends.cuda.matmul.allow_tf32 = True",
    ],
)
def test_tf32_is_off_however_it_was_asked_for(asked):
    """In a process of its own: the switches are the process's, and some cannot be set back."""
    done = subprocess.run([sys.executable, "-c", TF32.format(asked)], capture_output=True, text=True)
    assert not done.returncode, done.stderr


def test_a_loss_that_is_no_number_is_said(unet):
    target, null = texts()
    trajectory = [torch.randn(1, 4, 8, 8) for _ in range(5)]
    with pytest.raises(InputError, match=r"target-text inversion needs a finite loss, got (nan|inf)"):
        list(tune_text(unet, trajectory, target, null, Schedule(4), dataclasses.replace(SHORT, learning_rate=1e38)))


def test_tf32_is_off_while_tuning_and_as_it_was_afterwards(unet):
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    switches, name = ((matmul, cudnn.conv), "fp32_precision") if NEWER else ((matmul, cudnn), "allow_tf32")
    on, off = ("tf32", "ieee") if NEWER else (True, False)

    def chosen():
        return [getattr(switch, name) for switch in switches]

    before, seen = chosen(), []
    try:
        for allowed in (off, on):
            for switch in switches:
                setattr(switch, name, allowed)
            with pytest.raises(KeyError), no_tf32():
                seen.append(chosen())
                raise KeyError
            assert chosen() == [allowed, allowed]
        target, null = texts()
        trajectory = [torch.randn(1, 4, 8, 8) for _ in range(5)]
        unet.register_forward_hook(lambda *_: seen.append(chosen()))
        for _ in tune_text(unet, trajectory, target, null, Schedule(4), SHORT):
            assert chosen() == [on, on]  # the caller's own work between the steps
        assert len(seen) > 4 and all(found == [off, off] for found in seen)
    finally:
        for switch, value in zip(switches, before):
            setattr(switch, name, value)


# Compiling


def test_compile_hands_the_unet_to_torch_compile(monkeypatch):
    """What it makes of it is its own affair and takes minutes; that the forward traces as one graph is asked below."""
    asked = []
    monkeypatch.setattr(torch, "compile", lambda call, **options: asked.append(options) or call)
    assert minibaret.load(compile=True).model.unet is not None and asked == [{"dynamic": False}]
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match="needs a C\\+\\+ compiler, but there is no no-such-compiler here"):
        minibaret.load(compile=True, device="cpu")


@torch.no_grad()
def test_the_forward_is_one_graph(unet):
    rows = bam.rows_at(0, SHORT)
    latents, text = torch.randn(len(rows), 4, 8, 8), unet.project_text(torch.randn(len(rows), 5, 24))
    plan = bam.injection(rows, 0, SHORT)
    compiled = torch.compile(unet, backend="eager", fullgraph=True, dynamic=False)
    assert torch.allclose(compiled(latents, torch.tensor(7), text, plan), unet(latents, torch.tensor(7), text, plan))


# Starting


HEAVY = ("triton", "PIL.ImageShow", "transformers", "diffusers", "matplotlib", "numpy.testing", "sympy")
LATE = ("torch._dynamo", "torch._inductor")  # what torch.compile and torch.optim need


def test_importing_minibaret_imports_nothing_heavy():
    """Beyond what `import torch` brings along."""
    code = "import sys, torch; before = set(sys.modules); import minibaret; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = done.stdout.split()
    assert "minibaret.editor" in imported and not {*HEAVY, *LATE} & {*imported}
