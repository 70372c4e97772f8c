"""What cannot load is refused in one sentence that says what it is, by the loader and on the command line alike."""

import subprocess
import sys
import zipfile

import pytest
import torch
from bad_weights import BAD, cut_short, stable_diffusion_2
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


@pytest.mark.parametrize(("make", "sentence"), BAD, ids=lambda value: getattr(value, "__name__", ""))
def test_bad_weights_are_one_sentence_and_exit_code_2(tmp_path, capsys, weights, make, sentence):
    path = make(tmp_path, weights)
    for arguments in (
        ["inspect", str(path)],
        ["edit", "dog.png", "a dog", "-o", str(tmp_path / "o.png"), "--weights", str(path)],
    ):
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
        (lambda t: t.update({"v_pred": torch.zeros(1)}), "1 tensor is unknown: v_pred"),  # marks another model
        (
            lambda t: t.update({"first_stage_model.lossy": torch.zeros(1)}),
            "1 tensor is unknown: first_stage_model.lossy",
        ),
        (
            lambda t: t.update({"cond_stage_model.model.x": torch.zeros(1)}),
            "unknown: cond_stage_model.model.x",
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
    single = write_single(tmp_path / "one.safetensors", ldm_tensors(weights))
    with pytest.raises(minibaret.InputError, match=r"\(fp16\) was wanted, but .* of a file there is only non_ema"):
        load_model(single, variant="fp16", sizes=TINY)
    with pytest.raises(minibaret.InputError, match=r"\(non_ema\) was wanted, but .* has no moving averages"):
        load_model(single, variant="non_ema", sizes=TINY)


def test_a_dtype_that_nobody_knows(tmp_path, weights):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"F3X"'))
    with pytest.raises(minibaret.InputError, match=r"^\S+: tensor a has dtype 'F3X'"):
        load_model(path)
