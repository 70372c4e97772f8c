"""An inversion that was interrupted goes on, and its unfinished file is never lost."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from inversions import OTHER, TEXT, assert_same_edit, assert_same_inversion, quick, stop_after

import minibaret
from minibaret import inversion_file
from minibaret.inversion_file import load_inversion, unfinished_path

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("done", [1, 3, 4, 6])
def test_an_interrupted_inversion_goes_on_after_its_last_step(tmp_path, small, picture, calls, done, monkeypatch):
    monkeypatch.setattr(inversion_file, "SHARE", 1e-9)  # a checkpoint after the first step, and none after that
    settings, file = quick(small), tmp_path / "dog.safetensors"
    whole = small.invert(picture, TEXT, settings)
    calls.clear()
    with pytest.raises(KeyboardInterrupt) as stopped:
        small.invert(picture, TEXT, settings, file=file, watch=stop_after(done))
    assert stopped.tb  # as on the command line, whoever keeps it keeps all that was alive
    assert [path.name for path in tmp_path.iterdir()] == ["dog.safetensors.part"]
    begun = load_inversion(unfinished_path(file))
    assert len(begun.trajectory) - 1 + len(begun.tuned) == done
    steps = []
    found = small.invert(picture, TEXT, settings, file=file, watch=steps.append)
    assert [step.index for step in steps] == [0, 1, 2, 3, 0, 1, 2, 3][done:]
    assert len(calls) == 4 + 4 * (1 + 3)  # both runs together
    assert_same_inversion(found, whole)
    assert_same_inversion(load_inversion(file), whole)
    assert [path.name for path in tmp_path.iterdir()] == ["dog.safetensors"]


def test_an_edit_may_go_on_from_an_unfinished_inversion(tmp_path, small, picture):
    settings, file = quick(small), tmp_path / "dog.safetensors"
    with pytest.raises(KeyboardInterrupt):
        small.invert(picture, TEXT, settings, file=file, watch=stop_after(5))
    result = small.edit(picture, TEXT, inversion=load_inversion(unfinished_path(file)))
    assert_same_edit(result, small.edit(picture, TEXT, settings))


def test_whoever_stops_asking_for_steps_finds_them_kept(tmp_path, small, picture, monkeypatch):
    monkeypatch.setattr(inversion_file, "SHARE", 1e-9)
    file = tmp_path / "dog.safetensors"
    for step in small.inversion_steps(picture, TEXT, quick(small), file=file):
        if step.stage == "target-text inversion" and step.index == 1:
            break
    del step
    begun = load_inversion(unfinished_path(file))
    assert len(begun.trajectory) == 5 and len(begun.tuned) == 2


def test_an_unfinished_file_of_another_run_or_damaged_is_not_lost(tmp_path, small, picture):
    settings, file = quick(small, inversion_text="null"), tmp_path / "dog.safetensors"
    part = unfinished_path(file)
    with pytest.raises(KeyboardInterrupt):
        small.invert(picture, TEXT, settings, file=file, watch=stop_after(6))
    kept = part.read_bytes()
    with pytest.raises(minibaret.InputError, match=r"dog.safetensors.part .* the text .*; pass --force to start over"):
        small.invert(picture, OTHER, settings, file=file)
    assert part.read_bytes() == kept
    part.write_bytes(kept[:-10])
    with pytest.raises(minibaret.InputError, match=r"dog.safetensors.part is cut short.*; pass --force to start over"):
        small.invert(picture, TEXT, settings, file=file)
    assert part.read_bytes() == kept[:-10] and not file.exists()
    found = small.invert(picture, OTHER, settings, file=file, restart=True)
    assert_same_inversion(found, small.invert(picture, OTHER, settings))
    assert file.exists() and not part.exists()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_invert_goes_on_when_the_command_is_run_again(tmp_path, monkeypatch, picture, how):
    monkeypatch.chdir(tmp_path)
    picture.save("dog.png")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = [sys.executable, "-m", "minibaret", "invert", "dog.png", TEXT, "--steps", "30", "--inner-steps", "1"]
    command += ["--width", "32", "--height", "32", "-o"]
    work = subprocess.Popen(
        [*command, "dog.safetensors"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )
    part = Path("dog.safetensors.part")
    while not part.exists():
        assert work.poll() is None
        time.sleep(0.01)
    work.send_signal(how)
    _, said = work.communicate()
    assert not Path("dog.safetensors").exists()
    assert 1 <= len(load_inversion(part).trajectory) - 1 + len(load_inversion(part).tuned) < 60
    if how is signal.SIGINT:
        assert work.returncode == 130
        assert "stopped; what was done is in dog.safetensors.part; run the same command again to go on" in said
    for name in ("dog.safetensors", "whole.safetensors"):
        assert subprocess.run([*command, name], stderr=subprocess.DEVNULL).returncode == 0
    assert not part.exists()
    assert_same_inversion(load_inversion("dog.safetensors"), load_inversion("whole.safetensors"))
