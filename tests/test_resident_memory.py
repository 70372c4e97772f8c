"""What a process has in memory by the operating system's count, while it works and once it has freed something."""

import dataclasses
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minibaret.bench.random_weights import TINY, write_folder
from minibaret.memory import peak_memory
from minibaret.weights import OnDemandModel

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def printed(code: str, *arguments: object) -> list[float]:
    """The numbers that a process of its own prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # its errors are shown with ours
    return [float(number) for number in done.stdout.split()]


RELEASED = """
import torch, sys
from pathlib import Path
from safetensors.torch import save_file
from minibaret.weights.files import open_tensors
def resident():
    return int(Path("/proc/self/status").read_text().partition("RssFile:")[2].split()[0]) // 1024
path = Path(sys.argv[1])
save_file({"a": torch.arange(16 * 2**20, dtype=torch.float32)}, path)
stored = open_tensors(path)["a"]
before = resident()
tensor = stored.read()
total = tensor.sum().item()
used = resident()
stored.release()
freed = resident()
assert tensor.sum().item() == total
print(used - before, freed - before)
"""


@linux
def test_released_pages_leave_the_resident_set_and_come_back(tmp_path):
    used, freed = printed(RELEASED, tmp_path / "a.safetensors")  # of 64 MB
    assert used > 50 and freed < 10


HELD = """
import sys
import torch
from minibaret.memory import hold, resident
if sys.argv[1] == "held":
    hold(10**9, torch.device("cpu"))
del (large := [torch.ones(7 * 10**6)])[:]  # 28 MB: once it is freed, malloc keeps blocks of that size
blocks = [torch.ones(2 * 10**6) for _ in range(40)]
before = resident()
del blocks[::2]  # 160 MB, and the blocks between them stay
print(before - resident())
"""


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="of glibc's malloc")
def test_a_limit_holds_malloc_to_what_is_in_use():
    (held,), (as_it_is,) = (printed(HELD, way) for way in ("held", "as it is"))
    assert held > 150 * 10**6 and as_it_is < 50 * 10**6


STREAMED = """
import sys
from pathlib import Path
import torch
from minibaret.memory import peak_memory, resident
from minibaret.weights import OnDemandModel
model = OnDemandModel(Path(sys.argv[1]), dtype=getattr(torch, sys.argv[2]))
if sys.argv[3] == "streamed":  # with as much data as it should need at most, which read-only pages are not
    import resource
    data = int(Path("/proc/self/status").read_text().partition("VmData:")[2].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (data + 300 * 10**6,) * 2)
unet = model.network("unet", streamed=sys.argv[3] == "streamed")
unet.set_checkpointing(True)
context = torch.zeros(1, 77, 24, dtype=model.dtype, requires_grad=True)
before = resident()
noise = unet(torch.zeros(1, 4, 8, 8, dtype=model.dtype), torch.tensor(481), context)
torch.autograd.grad(noise.sum(), context)
print(peak_memory(torch.device("cpu")) - before)
"""


@linux
def test_streamed_weights_are_in_memory_a_layer_at_a_time(tmp_path):
    """400 MB of them, where they lie and converted, where the process may not have as much data."""
    unet = dataclasses.replace(TINY.unet, channels=(128, 256, 512, 512), groups=32)
    write_folder(tmp_path, dataclasses.replace(TINY, unet=unet))
    ways = (("float32", "whole"), ("float32", "streamed"), ("bfloat16", "streamed"))
    (whole,), (in_place,), (converted,) = (printed(STREAMED, tmp_path, *way) for way in ways)
    assert whole > 4 * OnDemandModel(tmp_path).parameter_counts()["unet"] > 300e6
    assert max(in_place, converted) < 0.5 * whole


GROWTH = """
import sys
import minibaret
from minibaret.memory import resident
from minibaret.weights import MINIATURE_FOLDER
editor = minibaret.load(sys.argv[1], memory_limit="1500M")
after = []
for number in range(20):
    size = [(64, 64), (128, 64), (64, 128), (128, 128), (192, 64)][number % 5]
    picture = MINIATURE_FOLDER / "examples" / "dog.png"
    editor.edit(picture, "a brown dog", size=size, steps=1, inner_steps=1)
    after.append(resident())
print(max(after[15:]) / max(after[:10]))
"""


@linux
def test_twenty_edits_of_five_sizes_do_not_grow(tiny):
    assert printed(GROWTH, tiny)[0] < 1.02


@linux
def test_the_package_takes_little_memory_before_it_works():
    code = "import minibaret; minibaret.Editor, minibaret.load; print(minibaret.memory.resident())"
    assert 0 < printed(code)[0] < 0.3e9


def test_a_system_that_does_not_tell_the_peak_spoils_no_edit(monkeypatch):
    cpu = torch.device("cpu")
    assert peak_memory(cpu) > 100e6
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "VmSize:\t 5 kB\nVmRSS:\t 4 kB\n")
    assert peak_memory(cpu) > 100e6  # by another call
