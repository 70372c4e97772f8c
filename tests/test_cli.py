"""The command line on the shipped miniature, with few steps."""

import json
import subprocess
import sys

import pytest
from PIL import Image
from runs import refused

import minibaret
from minibaret.cli import main
from minibaret.methods import METHODS
from minibaret.weights.miniature.world.drawing import render
from minibaret.weights.miniature.world.scene import Scene

QUICK = ["--steps", "3", "--inner-steps", "1"]
ONCE = ["--steps", "1", "--inner-steps", "1"]  # where what comes out does not matter


def test_edit_writes_the_picture_the_sheet_and_the_summary(tmp_path, dog, capsys):
    output, sheet = tmp_path / "edited.png", tmp_path / "sheet.png"
    text = "a brown dog lying down on grass"
    assert main(["edit", str(dog), text, "-o", str(output), "--sheet", str(sheet), "--json", *QUICK]) == 0
    assert Image.open(output).size == (128, 128)
    assert Image.open(sheet).width > 4 * 128
    said = capsys.readouterr()
    summary = json.loads(said.out.splitlines()[-1])
    assert set(summary["seconds"]) == {"encode", "inversion", "target-text inversion", "edit", "decode"}
    assert summary["method"] == "baret" and summary["gradient_passes"] == summary["inner_iterations"]
    assert 0 <= summary["inner_iterations"] <= 3
    assert summary["reconstruction_psnr"] > 5
    for stage in ("inversion", "target-text inversion", "edit"):
        assert any(line.startswith(stage) and "3/3" in line for line in said.err.splitlines())


def test_ctrl_c_says_what_is_left(tmp_path, dog, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(minibaret.Editor, "edit", interrupted)
    assert main(["edit", str(dog), "a dog sitting", "-o", str(tmp_path / "edited.png")]) == 130
    assert capsys.readouterr().err == "minibaret: stopped; nothing was written\n"
    assert not (tmp_path / "edited.png").exists()


def test_words_that_the_model_does_not_know_are_named_once(tmp_path, dog, capsys):
    arguments = ["edit", str(dog), "-o", str(tmp_path / "edited.png"), "--steps", "1", "--inner-steps", "0"]
    assert main([*arguments, "a smiling dog in the snow; it’s a smiling dog"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("minibaret: ")]
    assert len(said) == 1 and "does not know these words" in said[0] and "--weights" in said[0]
    assert ": smiling, in, the, it’s; " in said[0]
    assert main([*arguments, "a brown dog lying down on grass with a red hat", "--force"]) == 0
    assert "minibaret: " not in capsys.readouterr().err


def test_a_profile_is_spoken_of(tmp_path, dog, capsys):
    picture = tmp_path / "wide.png"
    Image.open(dog).save(picture, icc_profile=b"no profile")
    assert (
        main(["edit", str(picture), "a dog", "-o", str(tmp_path / "o.png"), "--steps", "1", "--inner-steps", "0"]) == 0
    )
    assert f"{picture}: a colour profile that could not be used was ignored" in capsys.readouterr().out.splitlines()


def test_output_and_sheet_are_two_files_however_they_are_spelt(tmp_path, dog, capsys):
    (tmp_path / "here").symlink_to(".")
    for sheet in (tmp_path / "o.png", tmp_path / "here" / "o.png", f"{tmp_path}/../{tmp_path.name}/o.png"):
        said = refused(capsys, "edit", dog, "a dog", "-o", tmp_path / "o.png", "--sheet", sheet, *QUICK)
        assert "--output and --sheet must be two files" in said


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (["--width", "4096"], "a WEBP file holds at most 16,383 pixels a side, not 20480×128"),
        (["--width", "8224"], "width and height must be at most 8,192 pixels, got 8224×128"),
        (["--height", "4294967296"], "width and height must be at most 8,192 pixels, got 128×4294967296"),
        (["--width", "4096", "--height", "4096", "--memory", "600M"], "a memory limit of 600M cannot be kept"),
    ],
)
def test_what_cannot_be_held_is_refused_before_the_picture_is_read(tmp_path, capsys, size, said):
    sheet = [] if "--memory" in size else ["--sheet", tmp_path / "s.webp"]
    assert said in refused(capsys, "edit", "missing.png", "a dog", "-o", tmp_path / "o.png", *sheet, *size)


def test_an_output_that_came_to_be_meanwhile_is_kept(tmp_path, dog, capsys, monkeypatch):
    output, edit = tmp_path / "o.png", minibaret.Editor.edit

    def another_run(*arguments, **options):
        output.write_bytes(b"another run's")
        return edit(*arguments, **options)

    monkeypatch.setattr(minibaret.Editor, "edit", another_run)
    assert main(["edit", str(dog), "a dog", "-o", str(output), *QUICK]) == 2
    assert "o.png was written by another run meanwhile; pass --force" in capsys.readouterr().err
    assert output.read_bytes() == b"another run's"


def test_an_existing_output_is_kept_unless_forced(tmp_path, dog, capsys):
    output = tmp_path / "edited.png"
    output.write_bytes(b"precious")
    assert "--force" in refused(capsys, "edit", dog, "a dog sitting", "-o", output)
    assert output.read_bytes() == b"precious"
    assert main(["edit", str(dog), "a dog sitting", "-o", str(output), "--force", *ONCE]) == 0
    assert Image.open(output).size == (128, 128)


@pytest.mark.parametrize("shape", [(300, 200), (64, 64)])
def test_any_size_is_brought_to_the_models(tmp_path, shape):
    path = tmp_path / "picture.jpg"
    render(Scene(1, "cat", "sitting", "black", "snow")).resize(shape).save(path)
    assert main(["edit", str(path), "a black cat lying down on snow", "-o", str(tmp_path / "out.png"), *ONCE]) == 0
    assert Image.open(tmp_path / "out.png").size == (128, 128)


def test_maps_draws_where_words_are_looked_at(tmp_path, dog, capsys):
    output = tmp_path / "maps.png"
    text = "a brown dog lying down on grass"
    assert main(["maps", str(dog), text, "-o", str(output), "--words", "dog", "lying", *QUICK]) == 0
    assert Image.open(output).width >= 3 * 256 and "dog, lying" in capsys.readouterr().out
    assert "'cat' is not in" in refused(capsys, "maps", dog, text, "-o", tmp_path / "m.png", "--words", "cat")
    arguments = ("maps", dog, text, "-o", tmp_path / "m.png", "--at-step", 3, *QUICK)
    assert "steps to look at must be from 0 to 2, got [3]" in refused(capsys, *arguments)


FAST = {  # what makes a method quick enough for a test
    "prompt-tuning": ["--inner-steps", "1"],
    "null-text": ["--inner-steps", "1"],
    "baret": ["--inner-steps", "1"],
    "sine": ["--tuning-steps", "1"],
    "imagic": ["--embedding-steps", "1", "--unet-steps", "1"],
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_leaves_a_picture(tmp_path, dog, capsys, method):
    output, prompts = tmp_path / "x.png", ["a brown dog lying down on grass", "--source-prompt", "a brown dog standing"]
    flags = ["--method", method, "--steps", "3", *FAST.get(method, ())]
    assert main(["edit", str(dog), *prompts, *flags, "-o", str(output), "--json"]) == 0
    assert Image.open(output).size == (128, 128)
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["method"] == method and summary["row_forwards"] > 0
    assert (summary["gradient_passes"] > 0) == bool(METHODS[method].tunes)


def test_methods_are_listed(capsys):
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(METHODS)
    assert "source prompt" in next(line for line in lines if line.startswith("null-text"))


def test_compare_draws_one_sheet_and_says_what_it_left_out(tmp_path, dog, capsys):
    output, names = tmp_path / "compare.png", "masactrl, null-text,encode-decode,plug-and-play"
    arguments = ["compare", str(dog), "a brown dog lying down on grass", "--methods", names, "--steps", "3", "--json"]
    assert main([*arguments, "-o", str(output)]) == 0
    *_, line = capsys.readouterr().out.splitlines()
    summary = json.loads(line)
    assert list(summary["methods"]) == ["masactrl", "encode-decode", "plug-and-play"]
    assert summary["left_out"] == ["null-text"] and Image.open(output).width >= 4 * 256
    # one inversion with the empty prompt serves all three
    assert [("inversion" in found["seconds"]) for found in summary["methods"].values()] == [True, False, False]
    assert "a source prompt that says what the picture shows was wanted for null-text" in refused(
        capsys, "compare", dog, "a dog", "--methods", "null-text", "-o", tmp_path / "no.png"
    )


def test_generate_makes_one_picture_or_two(tmp_path, capsys):
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    assert main(["generate", "a brown dog sitting on sand", "-o", str(one), "--steps", "3", "--seed", "4"]) == 0
    assert Image.open(one).size == (128, 128)
    source = ["--source-prompt", "a brown dog sitting on sand"]
    assert main(["generate", "a cat", *source, "-o", str(two), "--steps", "3", "--seed", "4"]) == 0
    assert Image.open(two).width >= 2 * 128
    capsys.readouterr()
    said = refused(capsys, "generate", "a cat", *source, "--blend", "bird", "-o", tmp_path / "no.png")
    assert "a word to blend by" in said
    alone = refused(capsys, "generate", "a cat", "--blend", "cat", "--self-steps", "0.2", "-o", tmp_path / "no.png")
    assert "a source prompt is needed for self-steps, blend, got none" in alone
    for command, name in (["generate", "a cat"], "no.png"), (["evaluate"], "no.jsonl"):
        assert main([*command, "--steps", "400", "--weights", "nowhere", "-o", str(tmp_path / name)]) == 2
        assert "400 steps begin at timestep 799" in capsys.readouterr().err


def test_invert_once_edit_often(tmp_path, dog, capsys):
    file, prompt = tmp_path / "dog.safetensors", "a brown dog lying down on grass"
    assert main(["invert", str(dog), prompt, "-o", str(file), "--inversion-prompt", "null", *QUICK]) == 0
    arguments = ["edit", str(dog), prompt, "--inversion-file", str(file), "-o", str(tmp_path / "x.png"), "--json"]
    assert main(arguments) == 0
    *_, line = capsys.readouterr().out.splitlines()
    assert json.loads(line)["gradient_passes"] == 0
    said = refused(capsys, *arguments[:-1], "--force", "--guidance", "3.5")
    assert "it was made with guidance" in said and "not 3.5" in said
    arguments[2] = "a brown cat"  # which its trajectory serves, and what was tuned for the dog does not
    assert main([*arguments, "--force", "--inner-steps", "1"]) == 0
    assert f"{file} gave: trajectory; made anew: target embeddings\n" in capsys.readouterr().out
    assert main([*arguments, "--force", "--method", "sdedit"]) == 0
    assert f"{file} gave: the picture's latents\n" in capsys.readouterr().out


@pytest.mark.parametrize(("steps", "warned"), [("50", False), ("400", True)])
def test_steps_that_do_not_begin_at_noise_are_warned_of(tmp_path, dog, capsys, monkeypatch, steps, warned):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(minibaret.Editor, "edit", stop)
    main(["edit", str(dog), "a dog", "--steps", steps, "-o", str(tmp_path / "x.png")])
    warning = "400 steps begin at timestep 799 of 999, not at noise; 333 or 500 steps do"
    assert (warning in capsys.readouterr().err) == warned


def test_the_command_is_there_and_says_what_it_can():
    done = subprocess.run([sys.executable, "-m", "minibaret", "--help"], capture_output=True, text=True, check=True)
    assert "edit" in done.stdout and "evaluate" in done.stdout


def test_methods_are_timed_where_that_is_asked_for(capsys, monkeypatch):
    quick = {name: METHODS[name] for name in ("sdedit", "negative-prompt")}
    monkeypatch.setattr("minibaret.cli.commands.METHODS", quick)
    assert main(["methods", "--measure", "--steps", "2"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    column = head.index("seconds")
    assert [line.split()[0] for line in lines] == list(quick)
    assert all(float(line[column:].split()[0]) > 0 for line in lines)


def test_inspect_says_what_computes_attention(capsys):
    assert main(["inspect", "weights/miniature", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("attention on cpu: PyTorch, since ")
    assert "device must be auto, cpu" in refused(capsys, "inspect", "weights/miniature", "--device", "tpu")
