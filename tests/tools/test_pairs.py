"""Of a notebook and its text the edited one wins, whatever their times say; where contents do not tell, one
line asks."""
import json
import os
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest
from execnb.nbio import mk_cell, new_nb, read_nb, write_nb

ROOT = Path(__file__).resolve().parents[2]
import pairs

OUTPUT = {"output_type": "stream", "name": "stdout", "text": ["1\n"]}
MERGE = "<<<<<<< HEAD\n{}=======\n{}>>>>>>> other\n"


class Desk:
    "A folder with one notebook and its text, in git or not."

    def __init__(self, folder: Path, in_git: bool):
        self.folder = folder
        self.nb = folder/"nbs"/"core"/"10_a.ipynb"
        self.py = pairs.mirror_path(self.nb)
        self.py.parent.mkdir(parents=True)
        note = new_nb([mk_cell("# A", "markdown"), mk_cell("x = 1"), mk_cell("print(x)")])
        note.cells[2].outputs = [OUTPUT]
        write_nb(note, self.nb)
        self.py.write_text(pairs.mirror_text(self.nb))
        if in_git:
            self.git("init", "--quiet")
            self.commit()

    def git(self, *command: str):
        author = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *author, *command], cwd=self.folder, check=True, capture_output=True)

    def commit(self):
        self.git("add", "-A")
        self.git("commit", "--quiet", "-m", "x")

    def edit_text(self, value: int):
        self.py.write_text(self.py.read_text().replace(f"x = {self.in_text()}", f"x = {value}"))

    def edit_notebook(self, value: int):
        note = read_nb(self.nb)
        note.cells[1].source = f"x = {value}"
        write_nb(note, self.nb)

    def in_text(self) -> int:
        return value_of(jupytext.read(self.py))

    def newer(self, path: Path):
        "Give one file a newer time than the other's."
        for each, when in ((self.nb, 1000), (self.py, 1000), (path, 2000)):
            os.utime(each, (when, when))

    def sync(self, chosen: str | None = None) -> int:
        "The value that both hold afterwards; the output and the cell ids must have been kept."
        ids = [c["id"] for c in read_nb(self.nb).cells]
        assert pairs.sync([self.nb], chosen) == []
        note = read_nb(self.nb)
        assert note.cells[2].outputs == [OUTPUT] and [c["id"] for c in note.cells] == ids
        assert value_of(note) == self.in_text()
        return self.in_text()

    def refused(self, chosen: str | None = None) -> str:
        "The one line, after which both files are as they were."
        before = self.nb.read_bytes(), self.py.read_bytes()
        line, = pairs.sync([self.nb], chosen)
        assert (self.nb.read_bytes(), self.py.read_bytes()) == before
        assert "10_a" in line and "\n" not in line
        return line


def value_of(note) -> int:
    return int(next(c.source for c in note.cells if c.source.startswith("x = ")).split()[-1])


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path, in_git=True)


@pytest.mark.parametrize("newer", ["nb", "py"])
@pytest.mark.parametrize("edited", ["edit_text", "edit_notebook"])
def test_the_edited_one_wins_whatever_the_times_say(desk, edited, newer):
    getattr(desk, edited)(2)
    desk.newer(getattr(desk, newer))
    assert desk.sync() == 2


@pytest.mark.parametrize("newer", ["nb", "py"])
def test_a_merge_of_both_is_no_edit(desk, newer):
    "Git wrote both; a stale record of an earlier round must not undo the merge, nor stop the next edit."
    desk.edit_text(2)
    assert desk.sync() == 2
    desk.commit()
    desk.edit_text(3)
    desk.edit_notebook(3)
    desk.commit()
    desk.newer(getattr(desk, newer))
    assert desk.sync() == 3
    desk.edit_notebook(4)
    desk.newer(desk.py)
    assert desk.sync() == 4


@pytest.mark.parametrize("first", ["edit_text", "edit_notebook"])
@pytest.mark.parametrize("second", ["edit_text", "edit_notebook"])
def test_edit_after_edit_without_a_commit(desk, first, second):
    getattr(desk, first)(2)
    assert desk.sync() == 2
    getattr(desk, second)(3)
    desk.newer(desk.nb if second == "edit_text" else desk.py)
    assert desk.sync() == 3


def test_new_outputs_are_no_edit(desk):
    "A notebook run again is newer and differs from HEAD, and yet it was the text that was edited."
    note = read_nb(desk.nb)
    note.cells[1].outputs = [OUTPUT]
    desk.edit_text(2)
    write_nb(note, desk.nb)
    desk.newer(desk.nb)
    assert desk.sync() == 2


def test_both_edited_asks_and_obeys(desk):
    desk.edit_text(2)
    desk.edit_notebook(3)
    desk.newer(desk.py)
    assert "both" in desk.refused()
    assert desk.sync(pairs.NOTEBOOK) == 3
    desk.edit_text(4)
    desk.edit_notebook(5)
    assert desk.sync(pairs.TEXT) == 4


def test_an_edit_taken_back_by_git_in_one_file_only_asks(desk):
    "The text is HEAD's again, the notebook is the last round's: following either could lose work."
    desk.edit_text(2)
    assert desk.sync() == 2
    desk.git("checkout", "--", str(desk.py))
    assert "HEAD" in desk.refused()


def test_committed_in_disagreement_asks(desk):
    "As after a merge whose conflict was solved in one of the two files."
    desk.edit_text(2)
    desk.commit()
    desk.newer(desk.py)
    assert "HEAD" in desk.refused()
    assert desk.sync(pairs.TEXT) == 2


def test_marks_of_a_merge_are_no_content(desk):
    whole = desk.nb.read_text()
    desk.nb.write_text(MERGE.format(whole, whole))
    desk.edit_text(2)
    assert "merge" in desk.refused()
    assert "merge" in desk.refused(pairs.NOTEBOOK)
    assert pairs.sync([desk.nb], pairs.TEXT) == []
    note = read_nb(desk.nb)
    assert value_of(note) == 2 and note.cells[2].outputs == [OUTPUT]


def test_marks_of_a_merge_in_the_text(desk):
    desk.py.write_text(MERGE.format("x = 1\n", "x = 2\n"))
    assert "merge" in desk.refused()
    assert "merge" in desk.refused(pairs.TEXT)
    assert desk.sync(pairs.NOTEBOOK) == 1


def test_nothing_is_written_while_one_is_undecided(desk):
    other = desk.nb.with_name("20_b.ipynb")
    other.write_text(desk.nb.read_text())
    pairs.mirror_path(other).write_text(desk.py.read_text())
    desk.commit()
    desk.edit_text(2)
    before = desk.nb.read_bytes()
    pairs.mirror_path(other).write_text(desk.py.read_text())
    other.write_text(other.read_text().replace("x = 1", "x = 3"))
    line, = pairs.sync([desk.nb, other])
    assert "20_b" in line and desk.nb.read_bytes() == before


@pytest.mark.parametrize("edited", ["edit_text", "edit_notebook"])
def test_times_decide_where_git_knows_nothing(tmp_path, edited):
    desk = Desk(tmp_path, in_git=False)
    getattr(desk, edited)(2)
    desk.newer(desk.py if edited == "edit_text" else desk.nb)
    assert desk.sync() == 2
    desk.edit_text(3)
    os.utime(desk.py, (5, 5))
    os.utime(desk.nb, (5, 5))
    desk.refused()


def test_one_of_the_two_is_enough(desk):
    desk.py.unlink()
    assert desk.sync() == 1
    desk.nb.unlink()
    assert "10_a.ipynb" in pairs.sync([desk.nb], pairs.NOTEBOOK)[0]
    assert pairs.sync([desk.nb]) == []
    assert value_of(read_nb(desk.nb)) == 1 and json.loads(desk.nb.read_text())["metadata"]["kernelspec"]


def test_command_line_says_what_to_do(tmp_path):
    "Exit status 2 and the option, before anything is exported."
    desk = Desk(tmp_path, in_git=True)
    desk.edit_text(2)
    desk.edit_notebook(3)
    done = subprocess.run(
        [sys.executable, str(ROOT/"tools"/"nb.py"), str(desk.nb)], capture_output=True, text=True
    )
    assert done.returncode == 2 and "--from text" in done.stderr and "10_a.ipynb" in done.stderr
