"""`load`: from weights on disk to an Editor, with everything checked that can be before work begins."""

import dataclasses
import os
import shutil
import warnings
from pathlib import Path

import torch

from .editor import Editor, defaults_of
from .errors import InputError
from .files import as_path, brief
from .memory import NO_SAVINGS, Savings, parse_limit, resident
from .methods import METHODS
from .models.configs import ModelConfig
from .weights import MINIATURE_FOLDER, OnDemandModel, load_model
from .weights.detect import find_checkpoint
from .weights.loading import NARROW

CPU_INFO = Path("/proc/cpuinfo")  # Linux; what other systems have is not looked at


def load(
    weights: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    variant: str | None = None,
    tokenizer: str | Path | None = None,
    memory_limit: str | int | None = None,
    savings: Savings = NO_SAVINGS,
    compile: bool = False,
) -> Editor:
    """An editor on the weights at a path, or on the miniature that ships with the package.

    weights: a single Stable Diffusion 1.5 file, a Hugging Face folder of it or a minibaret folder; device: "auto" (the
    first there is of "cuda", "mps" and "cpu"), "cpu", "cuda", "cuda:1", …, "mps"; dtype: "auto" (float16 on CUDA, else
    float32; bfloat16 for a wide UNet that is not compiled, and for it alone, on a CPU that multiplies it), "float32",
    "float16" or "bfloat16"; variant: which of a Hugging Face folder's files, such as "fp16" or "non_ema"; tokenizer: a
    file, or a folder with one, where the weights have none; memory_limit: what an edit may take, such as "4G", or
    bytes; savings: ways to need less memory that are taken in any case; compile: compile the UNet with torch.compile,
    which takes minutes before the first steps; where that fails, a warning says why and the edit goes on without.
    Raises InputError where something is not what it should be.
    """
    torch_device = parse_device(device)
    automatic = dtype == "auto"
    if automatic:
        dtype = "float16" if torch_device.type == "cuda" else "float32"
    if dtype not in ("float32", "float16", "bfloat16"):
        raise InputError(f"dtype must be auto, float32, float16 or bfloat16, got {dtype!r}")
    if not isinstance(savings, Savings):
        raise InputError(f"savings must be a minibaret.Savings, got {type(savings).__name__}")
    if dtype == "float16" and torch_device.type == "cpu":
        warnings.warn("float16 takes several times as long as bfloat16 on a CPU: try that, or float32", stacklevel=2)
    limit = None if memory_limit is None else parse_limit(memory_limit)
    folder = MINIATURE_FOLDER if weights is None else as_path(weights, "weights")
    dtype_is_fixed = not automatic or savings.unet_dtype is not None
    if torch_device.type == "cpu" and not (dtype_is_fixed or compile):
        found = automatic_dtype(find_checkpoint(folder, variant).config, torch_device)
        savings = dataclasses.replace(savings, unet_dtype=found if found == torch.bfloat16 else None)
    on_demand = savings.on_demand or savings.streamed or savings.unet_dtype is not None or limit is not None
    compiler = os.environ.get("CXX", "g++")
    if compile and on_demand:
        raise InputError(
            "compile was wanted together with networks on demand, a memory limit or a dtype of the UNet's own, but a "
            "compiled network is read once and stays in memory"
        )
    if compile and torch_device.type == "cpu" and shutil.which(compiler) is None:
        raise InputError(f"compile was wanted, which needs a C++ compiler, but there is no {compiler} here")
    torch_dtype, tokenizer_path = getattr(torch, dtype), None if tokenizer is None else as_path(tokenizer, "tokenizer")
    read, process = OnDemandModel if on_demand else load_model, resident()
    with torch.inference_mode(False):  # a caller's would make weights of a kind that no gradient passes
        model = read(folder, torch_device, torch_dtype, variant, tokenizer_path)
    if compile:
        model.unet.forward = torch.compile(model.unet.forward, dynamic=False)
    check_defaults(model.config)
    return Editor(model, savings, limit, dtype_is_fixed, process)


def automatic_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    """Of a UNet whose dtype nobody chose: float16 on CUDA; bfloat16 for a wide one on a CPU that multiplies it, by AMX
    or AVX512-BF16; else float32."""
    if device.type == "cuda":
        return torch.float16
    features = CPU_INFO.read_text().split() if device.type == "cpu" and CPU_INFO.is_file() else []
    multiplies = torch.backends.mkldnn.is_available() and not {"amx_bf16", "avx512_bf16"}.isdisjoint(features)
    return torch.bfloat16 if multiplies and config.unet.channels[0] >= NARROW else torch.float32


def check_defaults(config: ModelConfig) -> None:
    """Raises InputError where the defaults of a model's config are none that methods have."""
    known = {entry.name for method in METHODS.values() for entry in dataclasses.fields(method.knobs)}
    for name, value in config.defaults.items():
        if name not in known | METHODS.keys() or isinstance(value, dict) != (name in METHODS):
            said = f"the defaults of {config.name} must be knobs, or a method's name with its knobs"
            raise InputError(f"{said}, got {brief({name: value})}")
    for method in METHODS.values():
        try:
            method.knobs_from(defaults_of(config, method))
        except InputError as error:
            raise InputError(f"the defaults of {config.name} are not what they should be: {error}") from None


def parse_device(device: str) -> torch.device:
    """Raises InputError for a device that this project does not know or that is not here."""
    if device == "auto":
        here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        device = next(name for name, there in here.items() if there)
    try:
        parsed = torch.device(device)
    except (RuntimeError, TypeError):
        parsed = None
    if parsed is None or parsed.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"device must be auto, cpu, cuda, cuda:N or mps, got {device!r}")
    if parsed.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {device} was wanted, but PyTorch finds no CUDA here")
    if parsed.type == "cuda" and (parsed.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {device} was wanted, but the last one here is cuda:{torch.cuda.device_count() - 1}")
    if parsed.type == "cuda" and parsed.index is None:
        parsed = torch.device("cuda", torch.cuda.current_device())  # some of PyTorch's calls want to know which
    if parsed.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("device mps was wanted, but PyTorch finds no Metal here")
    return parsed
