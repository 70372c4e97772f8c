"""What the README says of the code: the lines that it points at, and its Python."""

import re
from pathlib import Path

import pytest

import minibaret
from minibaret.methods import METHODS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_line_that_is_pointed_at_is_the_one_that_is_quoted():
    rows = re.findall(r"\]\((\S+?)#L(\d+)\) \| `(.+?)` \|$", README, re.MULTILINE)
    assert len(rows) >= 7
    for path, number, code in rows:
        line = (ROOT / path).read_text(encoding="utf-8").splitlines()[int(number) - 1].strip()
        assert line.split("  # ")[0] == code, f"{path}:{number} is {line}"


def test_every_path_that_is_linked_is_there():
    for path in re.findall(r"\]\((?!https?:|#)([^)#]+)", README):
        assert (ROOT / path).exists(), path


def test_the_table_of_methods_is_whole_and_true():
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| [^|]+ \| ([^|]+) \|", README, re.MULTILINE))
    assert list(rows) == list(METHODS)
    for name, needs in rows.items():
        assert ("source prompt" in needs) == METHODS[name].needs_source, name


def test_the_readme_fits_two_hundred_lines():
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("method", ["baret", "mine"])
def test_its_python_runs(method, monkeypatch, tmp_path):
    """With fewer steps."""
    blocks = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
    edit, steps = minibaret.Editor.edit, minibaret.Editor.steps
    quick = {"baret": {"inner_steps": 1}}

    def fewer(run):
        def call(self, image, prompt, method="baret", **options):
            options |= {"steps": 2, **(quick.get(method, {}) if isinstance(method, str) else {})}
            return run(self, ROOT / image, prompt, method, **options)

        return call

    monkeypatch.setattr(minibaret.Editor, "steps", fewer(steps))
    monkeypatch.setattr(minibaret.Editor, "edit", fewer(edit))
    monkeypatch.chdir(tmp_path)
    variables: dict = {}
    exec(blocks[0], variables)
    assert (tmp_path / "edited.png").exists()
    if method == "mine":
        exec(blocks[1].rsplit("\n\n", 1)[0], variables)
        result = variables["editor"].edit(
            "weights/miniature/examples/dog.png", "a cat", variables["mine"], source_prompt="a brown dog standing"
        )
        assert result.method.name == "mine" and result.counts.row_forwards == 2 * 1 + 2 * 3 - 1
