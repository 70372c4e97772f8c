"""Files are whole or untouched, whatever happens to who writes them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from minibaret import files
from minibaret.errors import InputError
from minibaret.files import UNFINISHED, check_place, read_json, same_place, write_whole

posix = pytest.mark.skipif(os.name != "posix", reason="modes, locks and limits of POSIX systems")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@posix
def test_the_mode_of_a_file_is_kept_and_a_new_one_has_the_umasks(tmp_path):
    path = tmp_path / "a.txt"
    before = os.umask(0o027)
    try:
        write_whole(path, b"new")
        assert mode(path) == 0o640
        for kept in (0o600, 0o444, 0o664):
            path.chmod(kept)
            write_whole(path, b"again")
            assert mode(path) == kept and path.read_bytes() == b"again"
        write_whole(path, lambda unfinished: Path(unfinished).write_bytes(b"by name"))
        assert mode(path) == 0o664 and path.read_bytes() == b"by name"
    finally:
        os.umask(before)
    assert names(tmp_path) == ["a.txt"]


@posix
def test_a_link_is_followed(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "link.txt"
    link.symlink_to("there/file.txt")
    for content in (b"new", b"again"):
        check_place(link, force=True)
        write_whole(link, content)
        assert link.is_symlink() and (tmp_path / "there" / "file.txt").read_bytes() == content
    with pytest.raises(InputError, match="pass --force"):
        check_place(link, force=False)
    (tmp_path / "lost.txt").symlink_to("nowhere/file.txt")
    with pytest.raises(InputError, match=r"there is no folder .*nowhere to write file\.txt to"):
        check_place(tmp_path / "lost.txt", force=True)
    (tmp_path / "circle.txt").symlink_to("circle.txt")
    with pytest.raises(InputError, match=r"circle\.txt cannot be written: "):
        check_place(tmp_path / "circle.txt", force=True)


def test_a_file_that_came_to_be_meanwhile_is_kept_unless_forced(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"

    def write(unfinished: str) -> None:
        Path(unfinished).write_bytes(b"mine")
        path.write_bytes(b"another run's")

    def no_links(*_) -> None:
        raise PermissionError("this file system has no hard links")

    for _ in ("with hard links", "without"):
        check_place(path, force=False)
        with pytest.raises(InputError, match=r"a\.txt was written by another run meanwhile; pass --force"):
            write_whole(path, write, force=False)
        assert path.read_bytes() == b"another run's" and names(tmp_path) == ["a.txt"]
        path.unlink()
        write_whole(path, b"mine", force=False)
        assert path.read_bytes() == b"mine" and names(tmp_path) == ["a.txt"]
        path.unlink()
        monkeypatch.setattr(os, "link", no_links)
    write_whole(path, write)
    assert path.read_bytes() == b"mine"


@posix
def test_what_a_killed_run_leaves_is_removed_by_the_next_and_a_living_ones_is_not(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from minibaret.files import write_whole\n"
        "write_whole(Path(sys.argv[1]), lambda unfinished: os.kill(os.getpid(), signal.SIGKILL))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.png")])
    assert done.returncode == -signal.SIGKILL and len(names(tmp_path)) == 1
    assert UNFINISHED.fullmatch(names(tmp_path)[0])
    (tmp_path / ".other-0123456789abcdef.png").touch()  # not ours
    seen = []

    def write(unfinished: str) -> None:
        write_whole(tmp_path / "b.png", b"b")
        seen.append(names(tmp_path))
        Path(unfinished).write_bytes(b"a")

    write_whole(tmp_path / "a.png", write)
    assert len(seen[0]) == 3 and names(tmp_path) == [".other-0123456789abcdef.png", "a.png", "b.png"]


@posix
def test_a_full_disk_leaves_the_old_file_whatever_its_kind(tmp_path):
    """A limit on the size of files makes a write fall short as a full disk does, and reports it only to who looks."""
    code = f"""
import resource, sys, torch
from pathlib import Path
from PIL import Image
from minibaret.images import WRITABLE, write_image
from minibaret.weights.folder import save_part
noise = Image.effect_noise((256, 256), 90).convert("RGB")
writers = {{suffix: lambda path: write_image(noise, path) for suffix in WRITABLE}}
writers[".safetensors"] = lambda path: save_part(torch.nn.Linear(256, 256), path)
for suffix, write in writers.items():
    path = Path({str(tmp_path)!r}, "a" + suffix)
    path.write_bytes(b"old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    try:
        write(path)
    except OSError as error:
        print(suffix, path.read_bytes())
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kinds = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".safetensors")
    assert done.stdout.splitlines() == [f"{suffix} b'old'" for suffix in kinds]
    assert names(tmp_path) == sorted(f"a{suffix}" for suffix in kinds)


@posix
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no/such/a.png", "there is no folder"),
        ("file.txt/a.png", "there is no folder"),
        ("folder", "a file was wanted as output, but .*folder is a folder"),
        ("pipe", "a file was wanted as output, but .*pipe is no file"),
        ("x" * 300, "x cannot be written: File name too long"),
        ("a\0b", "cannot be written: embedded null byte"),
    ],
)
def test_a_place_where_nothing_can_be_written(tmp_path, name, said):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.txt").touch()
    os.mkfifo(tmp_path / "pipe")
    for force in (True, False):
        with pytest.raises(InputError, match=said):
            check_place(tmp_path / name, force)


@posix
def test_the_spellings_of_one_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "shortcut").symlink_to("folder")
    (tmp_path / "link.png").symlink_to("folder/a.png")
    one = [Path("folder/a.png"), tmp_path / "folder" / "a.png", Path("folder/../folder/a.png"), Path("shortcut/a.png")]
    for first in [*one, Path("link.png")]:
        assert all(same_place(first, second) for second in one)
        assert not same_place(first, Path("a.png")) and not same_place(first, Path("folder/b.png"))
    (tmp_path / "a.png").touch()
    os.link(tmp_path / "a.png", tmp_path / "b.png")
    assert same_place(Path("a.png"), Path("b.png"))


@pytest.mark.parametrize(
    "content", ['{"a": ', "[" * 100_000, "1" * 5000, '{"a": "\xff"}'.encode("latin-1"), " " * 20_000_001]
)
def test_json_that_cannot_be_read_is_a_sentence(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=r"a\.json (is damaged: JSON was wanted|must have at most 20,000,000 bytes)"):
        read_json(path)
    path.unlink()
    path.symlink_to("gone.json")
    with pytest.raises(InputError, match=r"a\.json is a link to gone\.json, which is not there"):
        read_json(path)
    path.unlink()
    with pytest.raises(InputError, match="there is no file"):
        read_json(path)


def test_where_there_are_no_locks_files_are_still_written_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    left = tmp_path / ".a.txt-0123456789abcdef.unfinished"
    left.touch()
    for force in (False, True):
        write_whole(tmp_path / "a.txt", b"a", force)
    assert names(tmp_path) == [left.name, "a.txt"]  # whose it is cannot be known
