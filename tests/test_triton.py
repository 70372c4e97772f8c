"""The Triton kernel without a GPU: what it computes, in Triton's interpreter, and what becomes of it, compiled ahead of
time. Each in a process of its own."""

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from minibaret.kernels.triton_attention import INSTALLED, ROW_BITS, launches, split

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(not INSTALLED, reason="the triton package is not installed")

# Registers a thread, at most. A block has 65,536 for all its threads.
CEILINGS = {
    "sm_80,self,40,fp16": 192,
    "sm_80,self,80,fp16": 255,
    "sm_80,self,160,fp16": 184,
    "sm_80,cross,40,fp16": 216,
    "sm_80,cross,80,fp16": 208,
    "sm_80,cross,160,fp16": 136,
    "sm_89,self,40,fp16": 192,
    "sm_89,self,80,fp16": 255,
    "sm_89,self,160,fp16": 184,
    "sm_89,cross,40,fp16": 160,
    "sm_89,cross,80,fp16": 208,
    "sm_89,cross,160,fp16": 112,
    "sm_90,self,40,fp16": 128,
    "sm_90,self,80,fp16": 200,
    "sm_90,self,160,fp16": 208,
    "sm_90,cross,40,fp16": 160,
    "sm_90,cross,80,fp16": 192,
    "sm_90,cross,160,fp16": 192,
    "sm_80,self,32,fp16": 160,
    "sm_80,cross,64,bf16": 248,
    "sm_80,ragged,64,bf16": 248,
    "sm_80,ragged,80,bf16": 255,
    "sm_80,ragged,152,bf16": 255,
    "sm_90,self,32,fp16": 136,
    "sm_90,cross,64,bf16": 176,
    "sm_90,ragged,64,bf16": 240,
    "sm_90,ragged,80,bf16": 232,
    "sm_90,ragged,152,bf16": 255,
}
if INSTALLED and tuple(map(int, import_module("triton").__version__.split(".")[:2])) >= (3, 3):  # which know it
    CEILINGS |= {"sm_100,self,40,fp16": 128, "sm_100,self,80,bf16": 184, "sm_100,self,160,fp16": 160}
    CEILINGS |= {"sm_100,cross,80,fp16": 160, "sm_100,cross,160,bf16": 160}


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
    columns = ("configuration", "registers", "spilled", "shared_memory", "matrix_instructions")
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
    if case.startswith("sm_90"):
        assert line["warpgroup_instructions"] == line["matrix_instructions"]
    least, most = (99 * 1024, 227 * 1024)  # bytes a block may have on 8.6 and 8.9, and on 9.0 and 10.0
    assert line["shared_memory"] <= (most if case.startswith(("sm_90", "sm_100")) else least)
    # 16 bytes, but for tiles too small to give every thread so many: the compiler knows that the strides are aligned
    assert line["wide_loads"] > line["loads"] / 2


def unpacked(takes) -> list[list[tuple]]:
    """By launch, by entry: rows of q, k, v, v, out and out, then the flags: a pair, add to the first, to the second."""
    numbers = tuple(number for row, terms in enumerate(takes) for take in terms for number in (row, *take))

    def entry(number):
        rows = (number >> place * ROW_BITS & (1 << ROW_BITS) - 1 for place in range(6))
        return (*rows, *f"{number >> 6 * ROW_BITS:03b}"[::-1])

    return [[entry(number) for number in entries] for entries in launches(numbers)]


def test_rows_that_share_a_map_go_in_pairs_and_first():
    assert unpacked([[(0, 0, 0)], [(1, 1, 1)]]) == [[(0, 0, 0, 0, 0, 0, *"000"), (1, 1, 1, 1, 1, 1, *"000")]]
    assert unpacked([[(0, 0, 0)], [(2, 1, 5)], [(2, 1, 4)]]) == [
        [(2, 1, 5, 4, 1, 2, *"100"), (0, 0, 0, 0, 0, 0, *"000")]
    ]
    assert unpacked([[(7, 7, 0)], [(7, 7, 1)], [(7, 7, 2)]]) == [
        [(7, 7, 0, 1, 0, 1, *"100"), (7, 7, 2, 2, 2, 2, *"000")]
    ]


def test_further_terms_of_a_row_are_added_by_later_launches():
    assert unpacked([[(0, 0, 0)], [(0, 0, 3), (1, 1, 4)]]) == [
        [(0, 0, 0, 3, 0, 1, *"100")],
        [(1, 1, 4, 4, 1, 1, *"011")],
    ]
    same = [[(0, 0, 0), (0, 0, 1)]]  # two terms of one row are no pair: both would write it
    assert unpacked(same) == [[(0, 0, 0, 0, 0, 0, *"000")], [(0, 0, 1, 1, 0, 0, *"011")]]
    chain = [[(0, 0, 0)], [(0, 0, 1), (1, 1, 1)], [(1, 1, 2)]]  # the second pair meets one row written, one not
    assert unpacked(chain) == [[(0, 0, 0, 1, 0, 1, *"100")], [(1, 1, 1, 2, 1, 2, *"110")]]


def test_a_launch_holds_eight_entries():
    sizes = [len(entries) for entries in unpacked([[(row, row, row)] for row in range(19)])]
    assert sizes == [8, 8, 3]


def test_head_dimensions_are_split_into_powers_of_two():
    assert [split(d) for d in (40, 80, 160)] == [(32, 8), (64, 16), (128, 32)]
    for d in range(8, 161, 8):
        low, high = split(d)
        assert low & (low - 1) == 0 and high & (high - 1) == 0 and low <= d <= low + high < 2 * d
        assert low + high < d + max(8, high // 2)  # the smallest that will do
