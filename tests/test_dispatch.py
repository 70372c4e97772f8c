"""Which implementation `auto` takes (fake tensors stand for a GPU), and what is said where Triton cannot work."""

import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from minibaret import kernels
from minibaret.kernels import attention, triton_attention, triton_problem

OWN = [[(0, 0, 0)], [(1, 1, 1)]]
SHARED = [[(0, 0, 0)], [(0, 0, 1)]]


@pytest.fixture
def a_gpu(monkeypatch):
    """PyTorch says that there is a GPU of compute capability 9.0, on which Triton works."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(triton_attention, "INSTALLED", True)
    monkeypatch.setattr(triton_attention, "_first_launch", lambda device: None)


def chosen(takes, device="cuda", tokens=1024, dtype=torch.float16, features=40, gradient=False) -> str:
    with FakeTensorMode():
        q, k, v = (torch.empty(2, n, 8, features, dtype=dtype, device=device) for n in (tokens, 77, 77))
        return kernels._automatic(q.requires_grad_(gradient), k, v, takes)


def test_automatic_takes_the_kernel_where_rows_share_a_map_and_there_are_many_tokens(a_gpu):
    assert chosen(SHARED) == "triton"
    assert chosen([[(0, 0, 0)], [(0, 0, 1), (1, 1, 0)]], dtype=torch.bfloat16) == "triton"
    assert chosen(OWN) == "torch"
    assert chosen([[(0, 0, 0)], [(1, 0, 0)]]) == "torch"  # masactrl: other keys and values, no map in common
    assert chosen(SHARED, tokens=kernels.WORTH_SHARING - 1) == "torch"
    assert chosen(SHARED, dtype=torch.float32) == "torch"
    assert chosen(SHARED, device="cpu") == "torch"
    assert chosen(SHARED, gradient=True) == "torch"
    assert chosen(SHARED, features=168) == "torch"


def test_automatic_goes_on_with_pytorch_where_triton_cannot_work(a_gpu, monkeypatch):
    monkeypatch.setattr(triton_attention, "_first_launch", lambda device: "Triton found no C compiler")
    assert chosen(SHARED) == "torch"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda patch: patch.setattr(triton_attention, "INSTALLED", False), "the triton package is not installed"),
        (lambda patch: patch.setattr(torch.version, "hip", "6.4"), "this PyTorch is built for ROCm"),
        (lambda patch: patch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5)), "this GPU has 7.5"),
        (lambda patch: patch.setattr(triton_attention, "_first_launch", lambda _: "no C compiler"), "no C compiler"),
    ],
)
def test_where_triton_cannot_work_it_is_said(a_gpu, monkeypatch, change, said):
    assert triton_problem("cuda") is None
    change(monkeypatch)
    assert said in triton_problem("cuda")
    assert chosen(SHARED) == "torch"
    with FakeTensorMode(), pytest.raises(ValueError, match=f"^the Triton kernel cannot be used here: .*{said}"):
        x = torch.empty(2, 1024, 8, 40, dtype=torch.float16, device="cuda")
        attention(x, x, x, SHARED, "triton")


def test_on_a_cpu_the_problem_is_the_cpu():
    assert triton_problem("cpu") in ("it runs on CUDA, not on cpu", "the triton package is not installed")


def test_a_first_launch_that_fails_is_a_sentence_found_out_once(monkeypatch):
    calls = []

    def no_compiler(*_, **__):
        calls.append(1)
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable.")

    monkeypatch.setattr(torch, "empty", no_compiler)
    triton_attention._first_launch.cache_clear()
    device = torch.device("cuda:0")
    said = {triton_attention._first_launch(device) for _ in range(3)}
    triton_attention._first_launch.cache_clear()
    assert said == {
        "Triton could not compile and launch its first kernel on cuda:0: Failed to find C compiler. Please specify via "
        "CC environment variable."
    }
    assert calls == [1]


def test_triton_is_imported_by_nobody_until_it_is_used():
    code = "import sys, minibaret.kernels; print('triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_without_triton_the_operator_runs_and_says_so():
    code = """
import sys
sys.modules["triton"] = None
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "triton" else find_spec(name, *rest)
import torch
from minibaret.kernels import attention
x = torch.randn(1, 4, 1, 8)
attention(x, x, x)
try:
    attention(x, x, x, implementation="triton")
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "the Triton kernel cannot be used here: the triton package is not installed"
