"""Every layout of the same random weights gives the same parameters, bit for bit; the names are the real files'."""

import collections
import json
import subprocess
import sys

import pytest
import torch
from checkpoints import (
    SCHEDULE,
    TINY,
    Weights,
    ldm_tensors,
    random_weights,
    write_configs,
    write_hugging_face,
    write_merges,
    write_minibaret,
    write_single,
)
from safetensors.torch import load_file, save_file

from minibaret.errors import InputError
from minibaret.models.configs import SD15
from minibaret.models.text_encoder import TextEncoder
from minibaret.models.unet import UNet
from minibaret.models.vae import VAE
from minibaret.weights import Model, inspect, load_model
from minibaret.weights.files import StoredTensor, open_tensors

PARTS = ("unet", "vae", "text_encoder")


@pytest.fixture(scope="module")
def weights() -> Weights:
    return random_weights(TINY)


@pytest.fixture(scope="module")
def ldm(weights) -> dict[str, torch.Tensor]:
    return ldm_tensors(weights)


def same(model: Model, weights: Weights, dtype: torch.dtype = torch.float32) -> bool:
    for part in PARTS:
        state = getattr(model, part).state_dict()
        assert state.keys() == weights[part].keys()
        for name, value in state.items():
            assert value.dtype == dtype and value.device.type == "cpu", name
            assert torch.equal(value, weights[part][name].to(dtype)), name
    return True


def test_the_files_of_these_tests_have_the_names_of_the_real_ones(weights, ldm):
    """Counts and examples that are known of v1-5-pruned-emaonly and v1-5-pruned."""
    counts = collections.Counter(name.split(".")[0] for name in ldm)
    assert len(ldm) == 1145 and counts["model"] == 686 and counts["first_stage_model"] == 248
    assert counts["cond_stage_model"] == 196 + 1 and sum(name in SCHEDULE for name in ldm) == 12
    pruned = ldm_tensors(weights, ema=True)
    assert len(pruned) == 1145 + 686 and "model_ema.diffusion_modeltime_embed0weight" in pruned
    for name in (
        "model.diffusion_model.input_blocks.0.0.weight",
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
        "model.diffusion_model.input_blocks.3.0.op.weight",
        "model.diffusion_model.input_blocks.4.0.skip_connection.bias",
        "model.diffusion_model.middle_block.1.proj_in.weight",
        "model.diffusion_model.middle_block.2.emb_layers.1.weight",
        "model.diffusion_model.output_blocks.2.1.conv.weight",
        "model.diffusion_model.output_blocks.5.2.conv.weight",
        "model.diffusion_model.output_blocks.8.2.conv.weight",
        "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.ff.net.0.proj.weight",
        "model.diffusion_model.out.2.bias",
        "first_stage_model.encoder.mid.attn_1.q.weight",
        "first_stage_model.decoder.up.3.block.0.conv1.weight",
        "first_stage_model.decoder.up.1.block.0.nin_shortcut.weight",
        "first_stage_model.encoder.down.2.downsample.conv.weight",
        "cond_stage_model.transformer.text_model.embeddings.position_ids",
        "cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc2.weight",
    ):
        assert name in ldm, name
    squeezed = [name for name, value in ldm.items() if "attn_1" in name and value.dim() == 4]
    assert len(squeezed) == 8


def test_single_file_with_moving_averages_gives_these(tmp_path, weights):
    path = write_single(tmp_path / "v1-5-pruned.safetensors", ldm_tensors(weights, ema=True))
    assert same(load_model(path, sizes=TINY), weights)
    report = "\n".join(inspect(path, sizes=TINY))
    assert "the UNet is the moving average (EMA)" in report and f"{686 + 15} tensors" in report
    trained = {name: value + 1 for name, value in weights["unet"].items()}
    assert same(load_model(path, variant="non_ema", sizes=TINY), {**weights, "unet": trained})
    report = "\n".join(inspect(path, "non_ema", sizes=TINY))
    assert "the UNet is the weights in training" in report and f"{686 + 15} tensors" in report


EXTRAS = {  # of merges and fine-tunes, and none of them a weight of the three networks
    "cond_stage_model.logit_scale": torch.tensor(4.6),
    "cond_stage_model.text_projection": torch.zeros(24, 24),
    "cond_stage_model.transformer.logit_scale": torch.tensor(4.6),
    "cond_stage_model.transformer.text_projection.weight": torch.zeros(24, 24),
    "embedding_manager.embedder.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
    "first_stage_model.loss.logvar": torch.zeros(1),
    "first_stage_model.loss.perceptual_loss.lin0.model.1.weight": torch.zeros(1, 64, 1, 1),
    "scale_factor": torch.tensor(0.18215),
    "lvlb_weights": torch.zeros(1000),
    "logvar": torch.zeros(1000),
    "ddim_alphas_prev": torch.zeros(50),
    "denoiser.log_sigmas": torch.zeros(1000),
    "global_step": torch.zeros(1, dtype=torch.int64),
}


def test_what_merges_carry_beside_the_weights_is_dropped_and_said(tmp_path, weights, ldm):
    path = write_single(tmp_path / "merge.safetensors", {**ldm, **EXTRAS})
    assert same(load_model(path, sizes=TINY), weights)
    report = "\n".join(inspect(path, sizes=TINY))
    assert f"{15 + len(EXTRAS)} tensors" in report and all(name in report for name in EXTRAS)


@pytest.mark.parametrize("options", [{"text_model": False}, {"matrices": True}])
def test_single_file_of_a_fine_tune(tmp_path, weights, options):
    path = write_single(tmp_path / "tuned.safetensors", ldm_tensors(weights, **options))
    assert same(load_model(path, sizes=TINY), weights)


@pytest.mark.parametrize("position_ids", [True, False])
@pytest.mark.parametrize("text_model", [True, False])
@pytest.mark.parametrize("old_attention", [True, False])
def test_hugging_face_folder(tmp_path, weights, old_attention, text_model, position_ids):
    options = {"old_attention": old_attention, "text_model": text_model, "position_ids": position_ids}
    assert same(load_model(write_hugging_face(write_configs(tmp_path, TINY), weights, **options), sizes=TINY), weights)


def test_sharded_hugging_face_folder(tmp_path, weights):
    write_hugging_face(write_configs(tmp_path, TINY), weights, shards=3)
    assert same(load_model(tmp_path, sizes=TINY), weights)
    write_hugging_face(tmp_path, random_weights(TINY, 1), shards=2, variant="fp16", dtype=torch.float16)
    assert same(load_model(tmp_path, sizes=TINY), weights)
    chosen = load_model(tmp_path, dtype=torch.float16, variant="fp16", sizes=TINY)
    assert same(chosen, random_weights(TINY, 1), torch.float16)


def test_the_index_decides_which_shard_a_tensor_is_in(tmp_path, weights):
    write_hugging_face(tmp_path, weights, shards=3)
    files = sorted((tmp_path / "unet").glob("*-of-*"))
    first, last = load_file(files[0]), load_file(files[2])
    for file, tensors, more in ((files[0], first, last), (files[2], last, first)):  # stale, before and after the right
        save_file(tensors | {name: value + 1 for name, value in list(more.items())[:5]}, file)
    write_configs(tmp_path, TINY)
    assert same(load_model(tmp_path, sizes=TINY), weights)
    save_file({**load_file(files[1]), "stray": torch.zeros(1)}, files[1])
    with pytest.raises(InputError, match="its shards disagree about tensor stray"):
        load_model(tmp_path, sizes=TINY)


UNET, VAE_CONFIG, TEXT = "unet/config.json", "vae/config.json", "text_encoder/config.json"
SCHEDULER = "scheduler/scheduler_config.json"


def with_config(folder, file: str, changes: dict):
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        (UNET, {"attention_head_dim": [2, 2, 2, 2]}),
        (UNET, {"attention_head_dim": None, "num_attention_heads": 2}),
        (UNET, {"attention_head_dim": [2] * 4, "num_attention_heads": [2] * 4}),
        (UNET, {"act_fn": "swish", "norm_eps": 0.00001, "freq_shift": 0.0, "layers_per_block": [2, 2, 2, 2]}),
        (UNET, {"use_linear_projection": True, "upcast_attention": True, "sample_size": 96, "dropout": 0.1}),
        (UNET, {"transformer_layers_per_block": [1] * 4, "only_cross_attention": [False] * 4, "an_unknown_one": 5}),
        (VAE_CONFIG, {"force_upcast": True, "scaling_factor": 0.18215, "latents_mean": None, "act_fn": "silu"}),
        (TEXT, {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-05, "projection_dim": 512, "dropout": 0.1}),
        (SCHEDULER, {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "linspace", "trained_betas": None}),
        (SCHEDULER, {"clip_sample": False, "rescale_betas_zero_snr": False, "num_train_timesteps": 1000}),
    ],
)
def test_settings_in_other_words(tmp_path, weights, file, changes):
    write_hugging_face(write_configs(tmp_path, TINY), weights)
    assert same(load_model(with_config(tmp_path, file, changes), sizes=TINY), weights)


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        *[(UNET, "attention_head_dim", value) for value in (8, [2, 2, 2, 4], [], "2")],
        (UNET, "num_attention_heads", 4),
        (UNET, "flip_sin_to_cos", False),
        (UNET, "freq_shift", 1),
        (UNET, "center_input_sample", True),
        (UNET, "act_fn", "gelu"),
        (UNET, "norm_eps", 1e-6),
        (UNET, "norm_num_groups", None),
        (UNET, "resnet_time_scale_shift", "scale_shift"),
        (UNET, "only_cross_attention", [True, False, False, False]),
        (UNET, "class_embed_type", "timestep"),
        (UNET, "down_block_types", ["DownBlock2D"] * 4),
        (UNET, "block_out_channels", [16, 32, 64, 128]),
        (VAE_CONFIG, "scaling_factor", 0.13025),
        (VAE_CONFIG, "shift_factor", 0.1),
        (VAE_CONFIG, "latents_mean", [0.1, 0.2, 0.3, 0.4]),
        (VAE_CONFIG, "act_fn", "relu"),
        (TEXT, "hidden_act", "gelu"),
        (TEXT, "layer_norm_eps", 1e-6),
        (TEXT, "num_hidden_layers", 11),
        (SCHEDULER, "prediction_type", "v_prediction"),
        (SCHEDULER, "beta_schedule", "linear"),
        (SCHEDULER, "beta_end", 0.02),
        (SCHEDULER, "rescale_betas_zero_snr", True),
        (SCHEDULER, "trained_betas", [0.1] * 1000),
    ],
)
def test_settings_that_mean_another_network_are_refused(tmp_path, weights, file, key, value):
    with_config(write_hugging_face(write_configs(tmp_path, TINY), weights), file, {key: value})
    with pytest.raises(InputError, match=rf"{file} says {key} is .*; Stable Diffusion 1\.5 has "):
        load_model(tmp_path, sizes=TINY)


def test_variants(tmp_path, weights):
    """One folder with both spellings of the VAE, as the real one has them, and a UNet that has one variant more."""
    half, trained = random_weights(TINY, 1), random_weights(TINY, 2)
    write_hugging_face(write_configs(tmp_path, TINY), weights, old_attention=True)
    write_hugging_face(tmp_path, half, variant="fp16", dtype=torch.float16)
    save_file(trained["unet"], tmp_path / "unet" / "diffusion_pytorch_model.non_ema.safetensors")
    assert same(load_model(tmp_path, sizes=TINY), weights)
    assert same(load_model(tmp_path, dtype=torch.float16, variant="fp16", sizes=TINY), half, torch.float16)
    assert same(load_model(tmp_path, variant="non_ema", sizes=TINY), {**weights, "unet": trained["unet"]})


def test_minibaret_folder_says_its_own_sizes(tmp_path, weights):
    assert same(load_model(write_minibaret(tmp_path, weights, TINY)), weights)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
def test_single_file_in_every_dtype(tmp_path, weights, ldm, stored):
    path = write_single(tmp_path / "v1-5-pruned-emaonly.safetensors", ldm, stored)
    rounded = {part: {name: value.to(stored) for name, value in weights[part].items()} for part in PARTS}
    for wanted in (torch.float32, torch.float16, torch.bfloat16):
        assert same(load_model(path, dtype=wanted, sizes=TINY), rounded, wanted)


def test_weights_stay_in_their_file_until_they_are_written_to(tmp_path, weights):
    path = tmp_path / "vae.safetensors"
    save_file(weights["vae"], path)
    stored = open_tensors(path)["encoder.conv_in.weight"]
    first, second = stored.read(), stored.read(dtype=torch.float32)
    assert first.data_ptr() == second.data_ptr()  # the mapped pages, no copies
    assert stored.read(dtype=torch.float16).data_ptr() != first.data_ptr()
    before = path.read_bytes()
    first.add_(1)
    assert path.read_bytes() == before


def test_a_header_of_odd_length_loads(tmp_path, weights):
    """Old writers did not pad the header, so tensors may lie at any byte."""
    path = write_single(tmp_path / "odd.safetensors", ldm_tensors(weights))
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    for spaces in (1, 2, 3):
        header = data[8:end].rstrip() + b" " * spaces
        path.write_bytes(len(header).to_bytes(8, "little") + header + data[end:])
        assert same(load_model(path, sizes=TINY), weights)


def test_pages_of_tensors_that_were_copied_are_handed_back(tmp_path, monkeypatch):
    path, released = tmp_path / "odd.safetensors", []
    save_file({"a": torch.arange(5.0), "b": torch.arange(4).to(torch.float16)}, path)
    monkeypatch.setattr(StoredTensor, "release", lambda tensor, own: released.append(tensor.key))
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    for spaces in (0, 1):
        header = data[8:end] + b" " * spaces
        path.write_bytes(len(header).to_bytes(8, "little") + header + data[end:])
        stored = open_tensors(path)
        assert torch.equal(stored["a"].read(), torch.arange(5.0))
        assert stored["b"].read(dtype=torch.float32).tolist() == [0, 1, 2, 3]
        assert released == (["b"] if not spaces else ["b", "a", "b"])


def test_loading_draws_no_random_numbers(tmp_path, weights):
    path = write_hugging_face(write_configs(tmp_path, TINY), weights)
    before = torch.get_rng_state()
    model = load_model(path, sizes=TINY)
    assert torch.equal(before, torch.get_rng_state())
    assert not any(p.requires_grad for part in PARTS for p in getattr(model, part).parameters())
    assert not any(getattr(model, part).training for part in PARTS)


def test_loading_initialises_nothing(tmp_path, weights):
    """In a process of its own: initialising on the meta device would import PyTorch's compiler, which takes seconds."""
    path = write_minibaret(tmp_path, weights, TINY)
    code = f"import sys, minibaret; minibaret.load({str(path)!r}, 'cpu'); sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("place", ["tokenizer", "."])
def test_tokenizer_beside_a_single_file(tmp_path, weights, ldm, place):
    path = write_single(tmp_path / "model.safetensors", ldm)
    (tmp_path / "merges.txt").unlink()
    write_merges(tmp_path / place)
    assert load_model(path, sizes=TINY).tokenizer.tokens("dog") == ["dog</w>"]


def test_inspect_reports_each_layout(tmp_path, weights, ldm):
    for path, layout in (
        (write_single(tmp_path / "single.safetensors", ldm), "single file, LDM names"),
        (write_hugging_face(write_configs(tmp_path / "hf", TINY), weights), "Hugging Face folder"),
        (write_minibaret(tmp_path / "own", weights, TINY), "minibaret folder"),
    ):
        lines = list(inspect(path, sizes=TINY))
        assert lines[0] == f"{path}: {layout}" and lines[-1] == "would load, as tiny"
        for part, tensors in weights.items():
            line = next(line for line in lines if line.split()[0] == part)
            assert f"{len(tensors)} tensors" in line and "float32" in line
            assert f"{sum(value.numel() for value in tensors.values()):,} parameters" in line


def test_tiny_has_the_tensors_of_sd15():
    with torch.device("meta"):
        for part, network in zip(PARTS, (UNet, VAE, TextEncoder)):
            full, tiny = (network(getattr(config, part)).state_dict() for config in (SD15, TINY))
            assert list(full) == list(tiny)
