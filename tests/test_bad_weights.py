"""What cannot load is refused in one sentence that says what it is, by the loader and on the command line alike."""

import json
import os
import subprocess
import sys
import zipfile

import pytest
import torch
from checkpoints import (
    TINY,
    ldm_tensors,
    random_weights,
    write_hugging_face,
    write_merges,
    write_minibaret,
    write_single,
)
from safetensors.torch import save_file

import minibaret
from minibaret.cli import main
from minibaret.weights import inspect, load_model

ATTENTION = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


@pytest.fixture(scope="module")
def weights():
    return random_weights(TINY)


@pytest.fixture(scope="module")
def ldm(weights):
    return ldm_tensors(weights)


def stable_diffusion_2(folder, weights):
    tensors = {ATTENTION: torch.zeros(16, 1024), "cond_stage_model.model.positional_embedding": torch.zeros(77, 1024)}
    return write_single(folder / "v2-1_768-ema-pruned.safetensors", tensors)


def stable_diffusion_2_folder(folder, weights):
    unet = {"down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": torch.zeros(16, 1024)}
    return write_hugging_face(folder, {**weights, "unet": unet})


def sdxl(folder, weights):
    tensors = {ATTENTION.replace("1.1", "4.1"): torch.zeros(16, 2048), "conditioner.embedders.0.x": torch.zeros(1)}
    return write_single(folder / "sd_xl_base_1.0.safetensors", tensors)


def sdxl_folder(folder, weights):
    (folder / "text_encoder_2").mkdir()
    return write_hugging_face(folder, weights)


def inpainting(folder, weights):
    tensors = {
        ATTENTION: torch.zeros(16, 768),
        "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(16, 9, 3, 3),
    }
    return write_single(folder / "sd-v1-5-inpainting.safetensors", tensors)


def lora(folder, weights):
    name = "lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight"
    return write_single(folder / "style.safetensors", {name: torch.zeros(4, 2)})


def lora_of_diffusers(folder, weights):
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"
    return write_single(folder / "pytorch_lora_weights.safetensors", {name: torch.zeros(4, 2)})


def controlnet(folder, weights):
    return write_single(folder / "control.safetensors", {"control_model.time_embed.0.weight": torch.zeros(2)})


def pickle(folder, weights):
    path = folder / "v1-5-pruned-emaonly.ckpt"
    torch.save({"state_dict": {}}, path)
    return path


def pickle_in_disguise(folder, weights):
    return pickle(folder, weights).rename(folder / "model.safetensors")


def folder_of_pickles(folder, weights):
    pickle(folder, weights)
    return folder


def pickle_in_hugging_face_folder(folder, weights):
    write_hugging_face(folder, weights)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))
    return folder


def cut_short(folder, weights):
    path = write_single(folder / "model.safetensors", ldm_tensors(weights))
    os.truncate(path, 3_000_000)
    return path


def cut_in_the_header(folder, weights):
    path = write_single(folder / "model.safetensors", ldm_tensors(weights))
    os.truncate(path, 5000)
    return path


def too_long(folder, weights):
    path = write_single(folder / "model.safetensors", ldm_tensors(weights))
    path.write_bytes(path.read_bytes() + b"123")
    return path


def wrong_places(folder, weights):
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}).encode()
    path = folder / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(12))
    return path


def no_json(folder, weights):
    path = folder / "model.safetensors"
    path.write_bytes((9).to_bytes(8, "little") + b"{nothing}")
    return path


def text(folder, weights):
    path = folder / "model.safetensors"
    path.write_text("<!DOCTYPE html><html>404: not found</html>")
    return path


def nothing_in_it(folder, weights):
    (folder / "model.safetensors").touch()
    return folder / "model.safetensors"


def a_picture(folder, weights):
    path = folder / "dog.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
    return path


def empty_folder(folder, weights):
    return folder


def folder_of_something(folder, weights):
    (folder / "readme.txt").touch()
    return folder


def folder_with_a_single_file(folder, weights):
    write_single(folder / "v1-5-pruned-emaonly.safetensors", {"x": torch.zeros(1)})
    return folder


def missing(folder, weights):
    return folder / "nothing"


def other_widths(folder, weights):
    return write_single(folder / "model.safetensors", ldm_tensors(weights))


def no_shard(folder, weights):
    write_hugging_face(folder, weights, shards=2)
    (folder / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    return folder


def shard_elsewhere(folder, weights):
    write_hugging_face(folder, weights, shards=1)
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "../vae/other.safetensors"}}))
    return folder


def only_a_variant(folder, weights):
    return write_hugging_face(folder, weights, variant="fp16")


def velocity(folder, weights):
    write_hugging_face(folder, weights)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"prediction_type": "v_prediction"}))
    return folder


def broken_config(folder, weights):
    write_minibaret(folder, weights, TINY)
    (folder / "config.json").write_text('{"name": "tiny"}')
    return folder


BAD = [
    (stable_diffusion_2, "is a Stable Diffusion 2.x model (its UNet reads text of width 1024, not 768)"),
    (stable_diffusion_2_folder, "is a Stable Diffusion 2.x model"),
    (sdxl, "is a Stable Diffusion XL model"),
    (sdxl_folder, "is a Stable Diffusion XL model"),
    (inpainting, "is an inpainting model (its UNet has 9 input channels, not 4)"),
    (lora, "is a LoRA file"),
    (lora_of_diffusers, "is a LoRA file"),
    (controlnet, "is no Stable Diffusion checkpoint"),
    (pickle, "is a pickle (.ckpt)"),
    (pickle_in_disguise, "it is a PyTorch pickle under another name"),
    (folder_of_pickles, "holds only pickles (v1-5-pruned-emaonly.ckpt)"),
    (pickle_in_hugging_face_folder, "there is only diffusion_pytorch_model.bin, a pickle"),
    (cut_short, "is cut short: its header wants"),
    (cut_in_the_header, "is cut short: its header alone wants"),
    (too_long, "is damaged: its header wants"),
    (wrong_places, "is damaged: tensor a begins at byte"),
    (no_json, "its header does not parse"),
    (text, "it is a web page"),
    (nothing_in_it, "is not a safetensors file: it has 0 bytes"),
    (a_picture, "is not a safetensors file: it begins with"),
    (empty_folder, "is an empty folder"),
    (folder_of_something, "holds no weights"),
    (folder_with_a_single_file, "holds v1-5-pruned-emaonly.safetensors: name the file itself"),
    (missing, "there is no file or folder"),
    (other_widths, "has shape [16], wanted [320]"),
    (no_shard, "lists the shard diffusion_pytorch_model-00002-of-00002.safetensors, which is not beside it"),
    (shard_elsewhere, "lists the shard ../vae/other.safetensors, which is not beside it"),
    (only_a_variant, "which --variant fp16 chooses"),
    (velocity, "says prediction_type is 'v_prediction'"),
    (broken_config, "config.json is not a minibaret config"),
]


@pytest.mark.parametrize(("make", "sentence"), BAD, ids=lambda value: getattr(value, "__name__", ""))
def test_bad_weights_are_one_sentence_and_exit_code_2(tmp_path, capsys, weights, make, sentence):
    path = make(tmp_path, weights)
    for arguments in (["inspect", str(path)], ["edit", "dog.png", "a dog", "--weights", str(path), "--device", "cpu"]):
        assert main(arguments) == 2
        said = capsys.readouterr()
        assert said.err.startswith("minibaret: ") and said.err.count("\n") == 1 and sentence in said.err
        assert len(said.err) < 700 and "Traceback" not in said.err + said.out
        assert "would load" not in said.out
    with pytest.raises(minibaret.InputError, match=r"^[^\n]+$"):
        minibaret.load(path, "cpu")


def test_inspect_reports_what_it_could_read(tmp_path, capsys, weights):
    main(["inspect", str(stable_diffusion_2(tmp_path, weights))])
    lines = capsys.readouterr().out.splitlines()
    assert "file of" in lines[0]
    assert [line.split()[:2] for line in lines[1:]] == [["cond_stage_model", "1"], ["model", "1"]]


def test_a_process_ends_with_code_2_and_no_traceback(tmp_path, weights):
    command = [sys.executable, "-m", "minibaret", "inspect", str(cut_short(tmp_path, weights))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_pickles_are_never_opened(tmp_path, monkeypatch, weights):
    """A pickle that would leave a mark, under every name; and nothing even calls open on those with a pickle's name."""
    for name in ("model.ckpt", "model.bin", "model.pt", "model.pth", "model.safetensors"):
        path = tmp_path / name
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("archive/data.pkl", b"cos\nmkdir\n(V" + str(tmp_path / "mark").encode() + b"\ntR.")
        if name != "model.safetensors":
            path.chmod(0)
        with pytest.raises(minibaret.InputError, match="pickle"):
            load_model(path)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.pop(ATTENTION), "1 tensor is missing: down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"),
        (lambda t: t.update({"stray": torch.zeros(1)}), "1 tensor is unknown: stray"),
        (
            lambda t: t.update({ATTENTION.replace("to_k", "to_to_k"): torch.zeros(1)}),
            "1 tensor is unknown: down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_to_k.weight",
        ),
        (
            lambda t: t.update({"first_stage_model.loss.logvar": torch.zeros(1)}),
            "unknown: first_stage_model.loss.logvar",
        ),
        (lambda t: t.update({ATTENTION: torch.zeros(16, 12)}), "to_k.weight has shape [16, 12], wanted [16, 24]"),
        (lambda t: t.update({ATTENTION: torch.zeros(24, 16)}), "to_k.weight has shape [24, 16], wanted [16, 24]"),
        (
            lambda t: t.update({ATTENTION: torch.zeros(16, 24, dtype=torch.int8)}),
            "1 tensor is not floating-point numbers: down_blocks.0",
        ),
        (lambda t: [t.pop(name) for name in [*t][::2] if name.startswith("model.")], "343 tensors are missing: "),
        (lambda t: [t.pop(name) for name in [*t] if name.startswith("cond_")], "196 tensors are missing: "),
        (
            lambda t: t.update({"cond_stage_model.transformer.final_layer_norm.bias": torch.zeros(24)}),
            "unknown: cond_stage_model.transformer.",
        ),
        (
            lambda t: t.update({f"model_ema.diffusion_modelout{i}bias": torch.zeros(4) for i in range(120)}),
            "tensors are unknown: model_ema.",
        ),
    ],
)
def test_loading_is_strict_and_names_the_tensors(tmp_path, ldm, change, sentence):
    tensors = dict(ldm)
    change(tensors)
    path = write_single(tmp_path / "model.safetensors", tensors)
    for use in (load_model, lambda *a, **k: list(inspect(*a, **k))):
        with pytest.raises(minibaret.InputError) as caught:
            use(path, sizes=TINY)
        assert sentence in str(caught.value)
        assert str(caught.value).count(", ") < 12  # five names a kind at most


def test_a_single_file_without_tokenizer_says_which_file_to_put_where(tmp_path, ldm):
    path = write_single(tmp_path / "model.safetensors", ldm)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(minibaret.InputError, match=rf"put merges.txt, .* beside it, into {tmp_path}, or .*--tokenizer"):
        load_model(path, sizes=TINY)
    other = write_merges(tmp_path / "elsewhere")
    for named in (other, other.parent):
        assert load_model(path, tokenizer=named, sizes=TINY).tokenizer.size == TINY.text_encoder.vocabulary
    with pytest.raises(minibaret.InputError, match=r"neither a tokenizer's file nor a folder that holds merges.txt"):
        load_model(path, tokenizer=tmp_path / "nowhere", sizes=TINY)


def test_a_tokenizer_of_another_model_is_refused(tmp_path, ldm):
    path = write_single(tmp_path / "model.safetensors", ldm)
    write_merges(tmp_path, [("a", "b")])
    with pytest.raises(minibaret.InputError, match=r"another model's: it has 515 entries, the text encoder 521"):
        load_model(path, sizes=TINY)


def test_variants_that_are_not_there(tmp_path, weights):
    write_hugging_face(tmp_path / "hf", weights)
    with pytest.raises(minibaret.InputError, match=r"no variant fp16 of any part"):
        load_model(tmp_path / "hf", variant="fp16", sizes=TINY)
    own = write_minibaret(tmp_path / "own", weights, TINY)
    with pytest.raises(minibaret.InputError, match=r"a variant \(fp16\) was wanted, but .* is no Hugging Face folder"):
        load_model(own, variant="fp16")


def test_a_dtype_that_nobody_knows(tmp_path, weights):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"F3X"'))
    with pytest.raises(minibaret.InputError, match="tensor a has dtype 'F3X'"):
        load_model(path)
