"""What half precision would lose, and does not."""

import warnings

import pytest
import torch

import minibaret
from minibaret import loading
from minibaret.weights import MINIATURE_FOLDER

DOG = MINIATURE_FOLDER / "examples" / "dog.png"


@pytest.fixture
def processor(monkeypatch, tmp_path):
    """A processor with these features, on which the miniature's UNet counts as wide."""

    def features(*names: str) -> None:
        monkeypatch.setattr(loading, "CPU_INFO", tmp_path / "cpuinfo")
        (tmp_path / "cpuinfo").write_text(f"model name\t: some CPU\nflags\t\t: fpu {' '.join(names)} sse2\n\n")
        monkeypatch.setattr(loading, "NARROW", 64)

    return features


def dtypes(editor: minibaret.Editor) -> list[torch.dtype]:
    return [editor.sd.network(part).state_dict().popitem()[1].dtype for part in ("unet", "vae", "text_encoder")]


@pytest.mark.parametrize("feature", ["amx_bf16", "avx512_bf16"])
def test_a_wide_unet_is_bfloat16_where_the_processor_multiplies_it(processor, feature):
    processor("avx512f", feature)
    assert dtypes(minibaret.load(device="cpu")) == [torch.bfloat16, torch.float32, torch.float32]
    assert dtypes(minibaret.load(device="cpu", dtype="float32")) == [torch.float32] * 3


def test_else_everything_on_a_cpu_is_float32(processor, monkeypatch):
    processor("avx512f", "avx512_bf16_not", "amx_int8")
    assert dtypes(minibaret.load(device="cpu")) == [torch.float32] * 3
    processor("amx_bf16")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert dtypes(minibaret.load(device="cpu")) == [torch.float32] * 3
    monkeypatch.undo()
    processor("amx_bf16")
    monkeypatch.setattr(loading, "NARROW", 65)
    assert dtypes(minibaret.load(device="cpu")) == [torch.float32] * 3
    monkeypatch.setattr(loading, "CPU_INFO", loading.CPU_INFO / "nowhere")  # another system than Linux
    assert dtypes(minibaret.load(device="cpu")) == [torch.float32] * 3


def test_within_a_memory_limit_an_inversion_is_gone_on_with_in_its_own_dtype(processor):
    processor("amx_bf16")
    knobs = {"steps": 2, "inner_steps": 1}
    made = minibaret.load(device="cpu", dtype="float32").invert(DOG, "a brown dog", **knobs)
    result = minibaret.load(device="cpu", memory_limit="4G").edit(DOG, "a brown dog", inversion=made, **knobs)
    assert result.savings.unet_dtype is None


def test_float16_on_a_cpu_is_warned_of():
    with pytest.warns(UserWarning, match="^float16 takes several times as long as bfloat16 on a CPU"):
        minibaret.load(device="cpu", dtype="float16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        minibaret.load(device="cpu", dtype="bfloat16")
