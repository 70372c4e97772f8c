"""What half precision would lose, and does not."""

import warnings

import pytest
import torch

import minibaret
from minibaret import loading
from minibaret.pipeline import Counts
from minibaret.sampler import Schedule
from minibaret.tuning import tune
from minibaret.weights import MINIATURE_FOLDER

DOG = MINIATURE_FOLDER / "examples" / "dog.png"


class HalfNetwork:
    """A network of one float16 product, through which gradients become a thousandth."""

    def __init__(self):
        self.counts, self.weights = Counts(), 1e-3 * torch.randn(24, 4)

    def eps(self, latents, timestep, context):
        noise = context.half() @ self.weights.half()  # [1, 77, 4]
        return noise.float().mT[:, :, :64].reshape(1, 4, 8, 8)


def test_a_small_loss_still_moves_every_number_of_the_embedding():
    """Adam's first step is the learning rate times the gradient's sign, whatever its size; where that vanished it is
    nothing. The loss is what a tuning has near its end, 10⁻⁸ to 10⁻⁶."""
    network, schedule = HalfNetwork(), Schedule(1)
    fixed, embedding = torch.zeros(1, 77, 24), torch.randn(1, 77, 24)
    latents = torch.randn(1, 4, 8, 8)
    for size in (1e-4, 1e-3):
        timestep = schedule.timesteps[0]
        there = schedule.step(latents, 7.5 * network.eps(latents, timestep, embedding), timestep)
        goal = there + size * torch.randn_like(there)
        tuned = []
        list(
            tune(
                network, tuned, [goal, latents], embedding, fixed, schedule, 7.5,
                inner_steps=1, learning_rate=lambda i: 1e-3, threshold=lambda i: 0.0,
            )
        )  # fmt: skip
        alpha_from, alpha_to = schedule.alphas(timestep)
        slope = (1 - alpha_to) ** 0.5 - (alpha_to * (1 - alpha_from) / alpha_from) ** 0.5
        wanted = slope * (there - goal).view(1, 4, 64).mT @ network.weights.T  # [1, 64, 24], but for a positive factor
        moved = (tuned[0].embedding - embedding)[:, :64]
        assert (moved.sign() == -wanted.sign()).float().mean() > 0.99


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
