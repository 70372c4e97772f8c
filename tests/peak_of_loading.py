"""A process of its own: loads the weights at a path in a dtype, reads a number of every page, and prints its peak of
resident memory in bytes, less what was there after the imports."""

import gc
import sys
from pathlib import Path

import torch

from minibaret.weights import load_model


def resident(what: str) -> int:
    """Bytes of a line of /proc/self/status: VmRSS, the resident set now; VmHWM, its peak."""
    return int(Path("/proc/self/status").read_text().partition(f"{what}:")[2].split()[0]) * 1024


path, dtype = Path(sys.argv[1]), getattr(torch, sys.argv[2])
tokenizer = path if path.is_dir() else path.with_name("folder")
gc.collect()
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts afresh
model = load_model(path, "cpu", dtype, tokenizer=tokenizer)
for network in (model.unet, model.vae, model.text_encoder):
    for weight in network.parameters():
        weight.flatten()[:: 4096 // weight.element_size()].float().sum().item()
print(resident("VmHWM") - before)
