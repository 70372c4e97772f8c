"""Compiles kernels for GPUs that are not there and reads what became of them off the machine code.

    python tests/ahead_of_time.py sm_90,self,40,fp16 …    prints a line of JSON for each

Run as a process of its own, without TRITON_INTERPRET.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from minibaret.kernels import triton_attention, triton_kernels

TOKENS = {40: 4096, 80: 1024, 160: 256}  # of Stable Diffusion 1.5's sites, by head dimension
RAGGED = 36 * 36  # of a picture 576 pixels wide: no multiple of a step's keys
TEXT = 77
HEADS = 8


def compiled(capability: int, kind: str, features: int, dtype: str) -> dict:
    """kind: "self", "ragged" (self-attention whose tokens do not fill the last step), "cross" or "maps"; dtype: "fp16"
    or "bf16". Registers a thread, bytes of shared memory a block, bytes spilled, matrix instructions, copies to shared
    memory."""
    tokens = RAGGED if kind == "ragged" else TOKENS.get(features, 1024)
    keys = TEXT if kind == "cross" else tokens
    of_queries, of_keys = (_strides(length, features) for length in (tokens, keys))
    if kind == "maps":
        chosen, kernel = triton_attention.MAPS, triton_kernels.maps
        names = {"Q": dtype, "K": dtype, "OUT": "fp32", "QUERIES": "i32", "KEYS": "i32"}
        numbers = [*of_queries, *of_keys, tokens, tokens, keys, 1, 0.1]
        constants = {**triton_attention.constants(features, keys, chosen), "HEADS": HEADS, "UPCAST": False}
        del constants["WHOLE"]
    else:
        chosen, kernel = triton_attention.configuration(capability, features, keys), triton_kernels.forward
        names = {"Q": dtype, "K": dtype, "V": dtype, "OUT": dtype, "LSE": "fp32", "TABLE": "i32"}
        numbers = [*of_queries, *of_keys, *of_keys, *of_queries, tokens, keys, HEADS, 0.1]
        constants = {**triton_attention.constants(features, keys, chosen), "WRITE_LSE": False, "UPCAST": False}
    numbers = dict(zip([name for name in kernel.arg_names if name not in names and name not in constants], numbers))
    signature = {name: f"*{element}" for name, element in names.items()}
    signature |= {name: "i32" if isinstance(value, int) else "fp32" for name, value in numbers.items()}
    signature |= dict.fromkeys(constants, "constexpr")
    signature = {name: signature[name] for name in kernel.arg_names}
    aligned = list(names) + [name for name, value in numbers.items() if value % 16 == 0]  # as at run time
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(kernel, signature, constants, attributes)
    result = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=chosen.options)
    return {
        "configuration": f"{chosen.block_queries}/{chosen.block_keys}/{chosen.warps}/{chosen.stages}",
        "shared_memory": result.metadata.shared,
        **_read(result.asm["cubin"], result.asm["ptx"], capability),
    }


def _strides(tokens: int, features: int) -> list[int]:
    """Of rows, tokens and heads, in chunks of 8 elements."""
    return [tokens * HEADS * features // 8, HEADS * features // 8, features // 8]


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
        "matrix_instructions": len(re.findall(r"\b(?:HGMMA|HMMA)\.", sass)),
        "warpgroup_instructions": len(re.findall(r"\bHGMMA\.", sass)),
        "copies": len(re.findall(r"cp\.async\.c[ag]\.shared\.global", ptx)),
        "wide_copies": len(re.findall(r"cp\.async\.cg\.shared\.global \[[^\]]*\], \[[^\]]*\], 0x10", ptx)),
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


if __name__ == "__main__":
    for case in sys.argv[1:]:
        architecture, kind, features, dtype = case.split(",")
        found = compiled(int(architecture.removeprefix("sm_")), kind, int(features), dtype)
        print(json.dumps({"case": case, **found}), flush=True)
