"""Damaged and crafted files end in a sentence: a thousand from a fixed seed always, many more when asked for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).with_name("fuzz.py")


@pytest.mark.parametrize(
    ("count", "seed"), [(1000, 0), *(pytest.param(20_000, seed, marks=pytest.mark.full) for seed in (1, 2, 3))]
)
def test_no_file_ends_in_more_than_a_sentence(count, seed):
    """In a process of its own, since a peak of memory is a process's."""
    done = subprocess.run(
        [sys.executable, str(FUZZ), str(count), str(seed)], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["bad"] == []
    assert found["longest"] < 10 and found["megabytes"] < 500
    assert 0.5 * count < found["refused"] < 0.95 * count  # some are whole still


def test_a_header_of_a_hundred_megabytes_takes_no_gigabytes(tmp_path):
    """The longest that is allowed, of lists and of names, and a file that is nearly all hole."""
    code = """
import sys, resource
from pathlib import Path
from minibaret.errors import InputError
from minibaret.weights.files import open_tensors
path = Path(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for start, more in ((b'{"a":[', b"0," * 500_000), (b"{", b'"a":0,' * 160_000), (b"{", b" " * 1_000_000), (b"{}", b"")):
    with path.open("wb") as file:
        file.write((99_999_999).to_bytes(8, "little") + start)
        for _ in range(99):
            file.write(more)
        file.truncate(300_000_000)
    try:
        open_tensors(path)
    except InputError as error:
        print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], capture_output=True, text=True, check=True)
    *said, megabytes = done.stdout.splitlines()
    assert len(said) == 4 and all("its header does not parse" in sentence for sentence in said)
    assert float(megabytes) < 500
