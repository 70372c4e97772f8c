"""A command's process: closed and narrow streams, readers that go away, signals at any time."""

import os
import signal
import subprocess
import sys
import time

import pytest
from test_cli import QUICK

import minibaret
from minibaret import cli, files

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and descriptors of POSIX systems")
STEADY = "import sys; from minibaret.process import steady_streams\nwith steady_streams():\n    "


def run(code: str, redirections: str = "", **environment: str) -> subprocess.CompletedProcess:
    """Python code in a process of its own, in a shell."""
    command = ["bash", "-c", f'"$0" -c "$1" {redirections}', sys.executable, code]
    return subprocess.run(command, capture_output=True, env={**os.environ, **environment}, timeout=120)


def test_what_a_stream_cannot_encode_is_spelled_out():
    done = run(STEADY + r"print('犬 \udcff é')", PYTHONIOENCODING="latin-1:strict")
    assert done.returncode == 0 and done.stdout == rb"\u72ac \udcff " + b"\xe9\n" and done.stderr == b""


@pytest.mark.parametrize(("closed", "name"), [("2>&-", "stderr"), (">&-", "stdout")])
def test_a_closed_stream_goes_nowhere_and_its_descriptor_to_no_file(closed, name):
    other = {"stderr": "stdout", "stdout": "stderr"}[name]
    code = f"print('lost', file=sys.{name}); print(open('/dev/zero').fileno() > 2, file=sys.{other})"
    done = run(STEADY + code, closed)
    assert done.returncode == 0 and done.stdout + done.stderr == b"True\n"


@pytest.mark.parametrize("redirections", ["2>/dev/full", "2> >(true)"])
def test_messages_that_cannot_be_written_stop_nothing(redirections):
    code = "import time; time.sleep(0.3)\n    print('lost' * 9999, file=sys.stderr); sys.stderr.flush(); print('done')"
    done = run(STEADY + code, redirections)
    assert done.returncode == 0 and done.stdout == b"done\n"


def test_a_reader_that_goes_away_ends_a_command_quietly():
    command = f"{sys.executable} -m minibaret methods | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout == "141\n" and done.stderr == ""


def test_a_full_disk_under_stdout_is_one_sentence():
    done = run(
        "import sys; from minibaret.__main__ import main; sys.argv[1:] = ['methods']; sys.exit(main())", ">/dev/full"
    )
    assert done.returncode == 2 and done.stderr.decode().endswith(
        "could not be read or written: No space left on device\n"
    )
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_command_is_stopped_while_it_begins(name):
    code = (
        "import builtins, os, signal, sys; real = builtins.__import__\n"
        f"def stopped(name, *rest, **more):\n    if name == 'torch': os.kill(os.getpid(), signal.{name})\n"
        "    return real(name, *rest, **more)\n"
        "from minibaret.__main__ import main; builtins.__import__ = stopped\n"
        "sys.argv[1:] = ['methods']; sys.exit(main())"
    )
    done = run(code)
    assert done.returncode == 130 and done.stderr == b"minibaret: stopped; nothing was written\n"


def test_ctrl_c_half_a_second_after_the_start():
    process = subprocess.Popen([sys.executable, "-m", "minibaret", "methods"], stderr=subprocess.PIPE)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert (process.returncode, said) in ((130, b"minibaret: stopped; nothing was written\n"), (0, b""))


def test_a_process_that_was_started_to_ignore_signals_does():
    code = (
        "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from minibaret.process import stopped_by_signals\n"
        "with stopped_by_signals(at_once='stopped'): os.kill(os.getpid(), signal.SIGHUP)\nprint('went on')"
    )
    assert run(code).stdout == b"went on\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_edit_is_stopped_in_the_middle(tmp_path, dog, capsys, monkeypatch, number):
    before = signal.getsignal(number)
    monkeypatch.setattr(minibaret.Editor, "edit", lambda *_, **__: os.kill(os.getpid(), number) or time.sleep(5))
    assert cli.main(["edit", str(dog), "a dog sitting", "-o", str(tmp_path / "edited.png")]) == 130
    assert capsys.readouterr().err == "minibaret: stopped; nothing was written\n"
    assert signal.getsignal(number) is before


def test_what_was_written_before_it_was_stopped_is_said(tmp_path, dog, capsys, monkeypatch):
    monkeypatch.setattr("minibaret.sheet.edit_sheet", lambda *_: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(5))
    output = tmp_path / "edited.png"
    arguments = ["edit", str(dog), "a dog sitting", "-o", str(output), "--sheet", str(tmp_path / "sheet.png"), *QUICK]
    assert cli.main(arguments) == 130
    assert capsys.readouterr().err.endswith(f"minibaret: stopped; {output} was written\n") and output.exists()


COMMANDS = {
    "edit": ["edit", "DOG", "a dog", "-o", "OUT.png"],
    "invert": ["invert", "DOG", "a dog", "-o", "OUT.safetensors"],
    "compare": ["compare", "DOG", "a dog", "-o", "OUT.png", "--methods", "encode-decode"],
    "generate": ["generate", "a dog", "-o", "OUT.png"],
    "maps": ["maps", "DOG", "a dog", "-o", "OUT.png"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_killed_while_it_writes_leaves_the_old_file_and_the_next_cleans_up(tmp_path, dog, command):
    name = next(argument for argument in COMMANDS[command] if "OUT" in argument)
    output = tmp_path / "written" / name.replace("OUT", "out")
    output.parent.mkdir()
    output.write_bytes(b"old")
    places = {"DOG": str(dog), name: str(output)}
    arguments = [places.get(argument, argument) for argument in COMMANDS[command]]
    code = (
        "import os, signal, sys; from minibaret import cli, files\n"
        "files.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"sys.exit(cli.main({[*arguments, '--force', '--steps', '2']!r}))"
    )
    done = run(code)
    left = [path.name for path in output.parent.iterdir() if path != output]
    assert done.returncode == -signal.SIGKILL and output.read_bytes() == b"old"
    assert left and all(files.UNFINISHED.fullmatch(name) for name in left)
    files.write_whole(output, b"new")
    assert [path.name for path in output.parent.iterdir()] == [output.name]
