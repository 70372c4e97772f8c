"""An inversion that was interrupted goes on, and its unfinished file is never lost."""

import signal
import subprocess
import sys
import time

import pytest
from runs import OTHER, PROMPT, QUICK, assert_same_edit, assert_same_inversion, stop_after

import minibaret
from minibaret import inversion as module
from minibaret.inversion import load_inversion, unfinished_path

pytestmark = pytest.mark.usefixtures("one_thread")


def held(inversion: minibaret.Inversion) -> tuple[int, int]:
    """Steps of DDIM inversion, and of target-text inversion."""
    return len(inversion.items("trajectory")) - 1, len(inversion.items("target embeddings"))


@pytest.mark.parametrize("done", [1, 3, 4, 6])
def test_an_interrupted_inversion_goes_on_after_its_last_step(tmp_path, small, picture, calls, done, monkeypatch):
    monkeypatch.setattr(module, "SHARE", 1e-9)  # a checkpoint after the first step, and none after that
    file = tmp_path / "dog.safetensors"
    whole = small.invert(picture, PROMPT, **QUICK)
    calls.clear()
    with pytest.raises(KeyboardInterrupt) as stopped:
        small.invert(picture, PROMPT, file=file, watch=stop_after(done), **QUICK)
    assert stopped.tb  # as on the command line, whoever keeps it keeps all that was alive
    assert [path.name for path in tmp_path.iterdir()] == ["dog.safetensors.part"]
    assert sum(held(load_inversion(unfinished_path(file)))) == done
    steps = []
    found = small.invert(picture, PROMPT, file=file, watch=steps.append, **QUICK)
    assert [step.index for step in steps] == [0, 1, 2, 3, 0, 1, 2, 3][done:]
    assert len(calls) == 4 + 4 * (1 + 3)  # both runs together
    assert_same_inversion(found, whole)
    assert_same_inversion(load_inversion(file), whole)
    assert [path.name for path in tmp_path.iterdir()] == ["dog.safetensors"]


def test_an_edit_may_go_on_from_an_unfinished_inversion(tmp_path, small, picture):
    file = tmp_path / "dog.safetensors"
    with pytest.raises(KeyboardInterrupt):
        small.invert(picture, PROMPT, file=file, watch=stop_after(5), **QUICK)
    result = small.edit(picture, PROMPT, inversion=load_inversion(unfinished_path(file)))
    assert_same_edit(result, small.edit(picture, PROMPT, **QUICK))


def test_whoever_stops_asking_for_steps_finds_them_kept(tmp_path, small, picture, monkeypatch):
    monkeypatch.setattr(module, "SHARE", 1e-9)
    file = tmp_path / "dog.safetensors"
    for step in small.inversion_steps(picture, PROMPT, file=file, **QUICK):
        if step.stage == "target-text inversion" and step.index == 1:
            break
    del step
    assert held(load_inversion(unfinished_path(file))) == (4, 2)


def test_an_unfinished_file_of_another_run_or_damaged_is_not_lost(tmp_path, small, picture):
    null, file = {**QUICK, "inversion_prompt": "null"}, tmp_path / "dog.safetensors"
    part = unfinished_path(file)
    with pytest.raises(KeyboardInterrupt):
        small.invert(picture, PROMPT, file=file, watch=stop_after(6), **null)
    kept = part.read_bytes()

    def refusal(**changes) -> str:
        with pytest.raises(minibaret.InputError) as refused:
            small.invert(picture, PROMPT, file=file, **{**null, **changes})
        assert not file.exists() and str(refused.value).endswith("; pass --force to start over")
        return str(refused.value)

    assert "dog.safetensors.part does not belong to this run: it was made with steps 4, not 5; " in refusal(steps=5)
    assert "guidance 7.5, not 3.0" in refusal(guidance=3.0)
    assert part.read_bytes() == kept
    part.write_bytes(kept[:-10])
    assert "dog.safetensors.part is cut short" in refusal()
    assert part.read_bytes() == kept[:-10]
    found = small.invert(picture, OTHER, file=file, restart=True, **null)
    assert_same_inversion(found, small.invert(picture, OTHER, **null))
    assert file.exists() and not part.exists()


def test_starting_over_leaves_nothing_of_the_unfinished_run(tmp_path, small, picture):
    file = tmp_path / "dog.safetensors"
    with pytest.raises(KeyboardInterrupt):
        small.invert(picture, PROMPT, file=file, watch=stop_after(6), **QUICK)
    found = small.invert(picture, PROMPT, file=file, restart=True, **{**QUICK, "steps": 3})
    assert_same_inversion(found, small.invert(picture, PROMPT, **{**QUICK, "steps": 3}))
    assert [entry.name for entry in load_inversion(file).entries] == ["trajectory", "target embeddings"]
    assert not unfinished_path(file).exists()


INVERT = """
import sys, minibaret
editor = minibaret.load(device="cpu")
editor.invert("dog.png", sys.argv[1], steps=20, inner_steps=1, size=(32, 32), file=sys.argv[2])
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_inversion_goes_on_when_it_is_run_again(tmp_path, monkeypatch, editor, picture, how):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    picture.save(tmp_path / "dog.png")
    command = [sys.executable, "-c", INVERT, PROMPT]
    work = subprocess.Popen(
        [*command, "dog.safetensors"],
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )
    part = tmp_path / "dog.safetensors.part"
    while not part.exists():
        assert work.poll() is None
        time.sleep(0.01)
    work.send_signal(how)
    assert work.wait() != 0 and not (tmp_path / "dog.safetensors").exists()
    assert 1 <= sum(held(load_inversion(part))) < 40
    subprocess.run([*command, "dog.safetensors"], cwd=tmp_path, check=True)
    assert not part.exists()
    whole = editor.invert(picture, PROMPT, steps=20, inner_steps=1, size=(32, 32))
    assert_same_inversion(load_inversion(tmp_path / "dog.safetensors"), whole)
