"""Compiles kernels for GPUs that are not there and reads what became of them off the machine code.

    python tests/ahead_of_time.py sm_90,self,40,fp16 …    prints a line of JSON for each

Run as a process of its own, without TRITON_INTERPRET.
"""

import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from minibaret.kernels import triton_attention, triton_kernels

TOKENS = {40: 4096, 80: 1024, 160: 256}  # of Stable Diffusion 1.5's sites, by head dimension
RAGGED = 36 * 36  # of a picture 576 pixels wide: no multiple of a step's keys
TEXT = 77
ENTRIES = [f"e{i}" for i in range(triton_attention.ENTRIES)]


def compiled(capability: int, kind: str, features: int, dtype: str) -> dict:
    """kind: "self", "ragged" (self-attention whose tokens do not fill the last tile) or "cross"; dtype: "fp16" or
    "bf16". Registers a thread, bytes of shared memory a block, bytes spilled, matrix instructions, loads and how many
    of them are 16 bytes wide."""
    tokens = RAGGED if kind == "ragged" else TOKENS.get(features, 1024)
    keys = TEXT if kind == "cross" else tokens
    chosen, kernel = triton_attention.configuration(capability, features, keys), triton_kernels.forward
    pointers = dict.fromkeys(("Q", "K", "V", "OUT"), f"*{dtype}")
    numbers = {name: "i64" if name in ENTRIES else "i32" for name in triton_attention.NUMBERS}
    constants = {**triton_attention.constants(features, keys, chosen), "UPCAST": False}
    kinds = {**pointers, **numbers, "scale": "fp32", **dict.fromkeys(constants, "constexpr")}
    signature = {name: kinds[name] for name in kernel.arg_names}
    # What holds for every launch: pointers are multiples of 16, and nothing is known of the numbers.
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in pointers}
    source = ASTSource(kernel, signature, constants, attributes)
    result = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=chosen.options)
    return {
        "configuration": f"{chosen.block_queries}/{chosen.block_keys}/{chosen.warps}/{chosen.stages}",
        "shared_memory": result.metadata.shared,
        **_read(result.asm["cubin"], result.asm["ptx"], capability),
    }


def _read(cubin: bytes, ptx: str, capability: int) -> dict:
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _output(tools / "cuobjdump", "-res-usage", path)
        sass = _output(tools / "cuobjdump", "-sass", path)
        (path := Path(folder) / "kernel.ptx").write_text(ptx)
        said = _assembled(tools, path)
    spilled = sum(int(count) for count in re.findall(r"(\d+) bytes spill (?:stores|loads)", said))
    return {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
        "spilled": spilled,
        "matrix_instructions": len(re.findall(r"\b(?:HGMMA|HMMA|UTCHMMA)\b", sass)),
        "warpgroup_instructions": len(re.findall(r"\bHGMMA\.", sass)),
        "loads": len(re.findall(r"(?:cp\.async\.c[ag]\.shared|ld)\.global", ptx)),
        "wide_loads": len(re.findall(r"cp\.async\.cg\.shared\.global .*?, 0x10|ld\.global\S*\.v4\.b32", ptx)),
        "local_accesses": len(re.findall(r"\b(?:STL|LDL)\b", sass)),
    }


def _assembled(tools: Path, path: Path) -> str:
    """What ptxas says of a PTX file: the first of Triton's two assemblers that knows the file's version, as Triton
    itself chooses."""
    arch = re.search(r"^\.target (\w+)", path.read_text(), re.MULTILINE)[1]
    arguments = ["-v", "--regAllocOptLevel=2", f"--gpu-name={arch}", path, "-o", path.with_suffix(".again")]
    try:
        return _output(tools / "ptxas", *arguments)
    except subprocess.CalledProcessError:
        return _output(tools / "ptxas-blackwell", *arguments)


def _output(*command) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def line(case: str) -> str:
    architecture, kind, features, dtype = case.split(",")
    found = compiled(int(architecture.removeprefix("sm_")), kind, int(features), dtype)
    return json.dumps({"case": case, **found})


if __name__ == "__main__":
    with ProcessPoolExecutor() as processes:
        for found in processes.map(line, sys.argv[1:]):
            print(found, flush=True)
