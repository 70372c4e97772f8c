"""The Triton kernel without a GPU: what it computes, in Triton's interpreter, and what becomes of it, compiled ahead of
time. Each in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minibaret.kernels.triton_attention import INSTALLED, entries, split

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(not INSTALLED, reason="the triton package is not installed")

# Registers a thread, at most. A block has 65,536 for all its threads.
CEILINGS = {
    "sm_80,self,40,fp16": 192,
    "sm_80,self,80,fp16": 248,
    "sm_80,self,160,fp16": 248,
    "sm_80,cross,40,fp16": 136,
    "sm_80,cross,80,fp16": 255,
    "sm_80,cross,160,fp16": 255,
    "sm_80,self,32,fp16": 144,
    "sm_80,self,96,fp16": 184,
    "sm_80,cross,96,fp16": 192,
    "sm_80,ragged,64,bf16": 216,
    "sm_80,ragged,80,bf16": 248,
    "sm_80,ragged,152,bf16": 248,
    "sm_80,maps,160,fp16": 255,
    "sm_90,self,40,fp16": 136,
    "sm_90,self,80,fp16": 200,
    "sm_90,self,160,fp16": 255,
    "sm_90,cross,40,fp16": 120,
    "sm_90,cross,80,fp16": 168,
    "sm_90,cross,160,fp16": 255,
    "sm_90,self,32,fp16": 128,
    "sm_90,self,96,fp16": 184,
    "sm_90,cross,96,fp16": 192,
    "sm_90,ragged,64,bf16": 168,
    "sm_90,ragged,80,bf16": 208,
    "sm_90,ragged,152,bf16": 255,
    "sm_90,maps,160,fp16": 255,
}


@needs_triton
def test_in_the_interpreter_the_kernel_is_the_definition():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "interpreted_kernel.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.fixture(scope="module")
def machine_code() -> dict[str, dict]:
    """What the compiler made of every shipped configuration, by case; prints the table."""
    from triton import __file__ as triton_file

    tools = Path(triton_file).parent / "backends" / "nvidia" / "bin"
    if not all((tools / tool).exists() for tool in ("ptxas", "cuobjdump", "nvdisasm")):
        pytest.skip("this triton ships no ptxas, cuobjdump and nvdisasm")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(HERE / "ahead_of_time.py"), *CEILINGS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-6000:]
    found = {line["case"]: line for line in map(json.loads, done.stdout.splitlines())}
    columns = ("configuration", "registers", "shared_memory", "spilled", "matrix_instructions")
    print("\n" + " | ".join(("case", *columns)))
    for case, line in found.items():
        print(" | ".join((case, *(str(line[column]) for column in columns))))
    return found


@needs_triton
@pytest.mark.parametrize("case", CEILINGS)
def test_ahead_of_time_nothing_spills_and_tensor_cores_work(case, machine_code):
    line = machine_code[case]
    assert line["spilled"] == 0 and line["local_accesses"] == 0 and line["stack"] == 0
    assert line["registers"] <= CEILINGS[case]
    assert line["matrix_instructions"] > 0
    if case.startswith("sm_90") and ",maps," not in case:  # whose 32 queries are too few for a warpgroup
        assert line["warpgroup_instructions"] == line["matrix_instructions"]
    least, most = (99 * 1024, 227 * 1024)  # bytes a block may have on 8.6 and 9.0
    assert line["shared_memory"] <= (least if case.startswith("sm_80") else most)
    # 16 bytes, but for tiles too small to give every thread so many: the compiler knows that the strides are aligned
    assert line["wide_copies"] > line["copies"] / 2


def test_rows_that_share_a_source_go_in_pairs():
    assert entries((0, 1, 2)) == [(0, 0, -1), (1, 1, -1), (2, 2, -1)]
    assert entries((0, 1, 2, 3, 4, 1)) == [(1, 1, 5), (0, 0, -1), (2, 2, -1), (3, 3, -1), (4, 4, -1)]
    assert entries((7, 7, 7)) == [(7, 0, 1), (7, 2, -1)]
    assert entries((1, 1, 0, 1, 1)) == [(1, 0, 1), (1, 3, 4), (0, 2, -1)]


def test_head_dimensions_are_split_into_powers_of_two():
    assert [split(d) for d in (40, 80, 160)] == [(32, 8), (64, 16), (128, 32)]
    for d in range(8, 161, 8):
        low, high = split(d)
        assert low & (low - 1) == 0 and high & (high - 1) == 0 and low <= d <= low + high < 2 * d
        assert low + high < d + max(8, high // 2)  # the smallest that will do


def test_triton_is_imported_by_nobody_until_it_is_used():
    code = "import sys, minibaret; print('triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_without_triton_the_package_runs_and_says_so():
    code = """
import sys
sys.modules["triton"] = None
import torch
from importlib.util import find_spec
import importlib.util
importlib.util.find_spec = lambda name, *rest: None if name == "triton" else find_spec(name, *rest)
from minibaret.kernels import attention
x = torch.randn(1, 4, 1, 8)
attention(x, x, x)
try:
    attention(x, x, x, implementation="triton")
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said = "the Triton kernel cannot be used here: the triton package is not installed"
    assert done.stdout.strip() == said
