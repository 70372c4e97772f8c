"""What the command line refuses: one sentence and exit code 2."""

import errno

import pytest
import torch
from runs import refused

import minibaret
from minibaret.cli import main

QUICK = ["--steps", "3", "--inner-steps", "1"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["", ""], "a prompt that says what the picture should show was wanted"),
        (["", "a dog \udcff"], r"a prompt must be valid UTF-8 text, got 'a dog \udcff'"),
        (["", "a dog " * 60], "only|at most 75 fit; these words do not: 'dog a dog"),
        (["", "a dog", "--steps", "0"], "steps must be a whole number from 1 to 999, got 0"),
        (["", "a dog", "--self-steps", "1.5"], "self steps must be a number from 0 to 1, got 1.5"),
        (["", "a dog", "--guidance", "nan"], "guidance must be a number from -1000 to 1000"),
        (["", "a dog", "--guidance", "1e30"], "guidance must be a number from -1000 to 1000, got 1e+30"),
        (
            ["", "a dog", "--steps", "nan"],
            "argument --steps: invalid int value: 'nan'; minibaret edit --help says more",
        ),
        (["", "a dog", "--learning-rate", "3"], "learning-rate does nothing beside solver signs, got 3.0"),
        (["", "a dog", "--rigid", "--transition", "0.1:0.2"], "transition does nothing beside rigid, got 0.1:0.2"),
        (
            ["", "a dog", "--method", "direct", "--source-prompt", " "],
            "direct needs a source prompt that says what the picture shows, got an empty one",
        ),
        (["", "a dog", "--transition", "0.8"], "two numbers joined by a colon were wanted, got '0.8'"),
        (["", "a dog", "--transition", "0.8:1.2"], "transition must be two numbers from 0 to 1"),
        (["", "a dog", "--learning-rate", "-1"], "learning rate must be a number above 0"),
        (["", "a dog", "--width", "100"], "width and height must be multiples of 32 pixels, got 100×128"),
        (["", "a dog", "--width", "0"], "width and height must be multiples of 32 pixels, got 0×128"),
        (["", "a dog", "--height", "0"], "width and height must be multiples of 32 pixels, got 128×0"),
        (["", "a dog", "--memory", "1e999"], "a memory limit such as 4G or 900M was wanted, got '1e999'"),
        (["", "a dog", "--device", "meta"], "device must be auto, cpu, cuda, cuda:N or mps, got 'meta'"),
        (["", "a dog", "--device", "tpu9"], "device must be auto, cpu, cuda, cuda:N or mps, got 'tpu9'"),
        (["", "a dog", "--dtype", "int8"], "dtype must be auto, float32, float16 or bfloat16, got 'int8'"),
        (["", "a dog", "--method", "magic"], "a method must be one of baret, prompt-tuning"),
        (
            ["", "a dog", "--method", "masactrl", "--rigid"],
            "masactrl has no rigid; what it has: steps, guidance, first-step",
        ),
        (
            ["", "a dog", "--method", "null-text"],
            "null-text needs a source prompt that says what the picture shows, got none",
        ),
        (
            ["", "a dog", "--method", "direct", "--source-prompt", "a cat", "--blend", "bird"],
            "a word to blend by must be in",
        ),
        (["", "a dog", "--method", "direct", "--editor", "magic"], "invalid choice: 'magic'"),
        (
            ["", "a dog", "--method", "direct", "--reweight", "dog"],
            "a word and a number joined by an equals sign were wanted",
        ),
        (["", "a dog", "--weights", "nowhere"], "nowhere"),
        (["", "a dog", "-o", "edited.txt"], "must end in .png"),
        (["", "a dog", "-o", "no/such/folder.png"], "there is no folder"),
        (["missing.png", "a dog"], "there is no picture at missing.png"),
        (["x" * 300, "a dog"], "File name too long|there is no picture"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_two(tmp_path, monkeypatch, dog, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    image, *rest = arguments
    sentence = refused(
        capsys,
        "edit",
        image or dog,
        *rest,
        *(["--steps", "3"] if "--method" in rest else [] if "--steps" in rest else QUICK),
    )
    assert any(words in sentence for words in said.split("|"))
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("where", [None, "edited.png"])
def test_what_the_system_refuses_is_one_sentence_too(monkeypatch, capsys, where):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device", where)

    monkeypatch.setattr("minibaret.weights.inspect", fail)
    said = refused(capsys, "inspect", "folder")
    assert said.endswith(f"a file could not be read or written: {f'{where}: ' if where else ''}No space left on device")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_too_little_memory_is_one_sentence(dog, tmp_path, capsys, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(minibaret.Editor, "edit", fail)
    said = refused(capsys, "edit", dog, "a dog sitting", "-o", tmp_path / "edited.png")
    assert "there is not enough memory; --memory LIMIT" in said


def test_another_fault_of_the_device_is_not_taken_for_it(dog, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(minibaret.Editor, "edit", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        main(["edit", str(dog), "a dog sitting", "-o", str(tmp_path / "edited.png")])
