"Folders that are made for a file go again when nothing comes of it."
import pytest

from ctseg.core.atomic import atomic_path
from ctseg.core.errors import InputError
from ctseg.core.folders import alone_in, lock_folder, made_folder, make_folder
from ctseg.runs.lock import FileLock


@pytest.mark.parametrize("name", ["one/two/file", "one/" + "x"*300 + "/file", "one/" + "x"*300])
@pytest.mark.parametrize("folder", [False, True])
def test_a_write_that_fails_leaves_no_folder(tmp_path, name, folder):
    with pytest.raises((InputError, OSError, KeyError)):
        with atomic_path(tmp_path/name) as tmp:
            if folder: tmp.mkdir()
            raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_folder_that_was_there_or_holds_something_stays(tmp_path):
    (tmp_path/"mine").mkdir()
    for name, kept in (("mine/new", []), ("mine", []), ("mine/full", ["full"])):
        with pytest.raises(KeyError), made_folder(tmp_path/name) as made:
            if kept: (tmp_path/name/"file").touch()
            raise KeyError
        assert [p.name for p in (tmp_path/"mine").iterdir()] == kept and (tmp_path/"mine") not in made


def test_a_folder_is_for_one_writer(tmp_path):
    with alone_in(tmp_path/"out", tmp_path/"out"):
        with pytest.raises(InputError, match="another command is writing it"):
            with alone_in(tmp_path/"out", tmp_path/"out"): pass
    with alone_in(tmp_path/"out", tmp_path/"out"): (tmp_path/"out"/"a").touch()
    with pytest.raises(KeyError), alone_in(tmp_path/"new", tmp_path/"new"): raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_without_locks_everybody_may_write(tmp_path, monkeypatch):
    monkeypatch.setattr("ctseg.core.folders.fcntl", None)
    assert lock_folder(tmp_path) is None
    with alone_in(tmp_path, tmp_path), alone_in(tmp_path, tmp_path): pass


def test_a_folder_that_cannot_be_made_is_told_as_the_user_asked_for_it(tmp_path, monkeypatch):
    "Some systems make no folder in some places, as Linux in /proc."
    def mkdir(*args, **options): raise FileNotFoundError(2, "No such file or directory")
    monkeypatch.setattr("pathlib.Path.mkdir", mkdir)
    asked = tmp_path/"out.csv"
    for path, write in ((tmp_path/"new", make_folder), (asked, lambda path: make_folder(tmp_path/"new", path))):
        with pytest.raises(InputError) as e: write(path)
        assert str(e.value) == f"cannot write {path}: nothing can be made there; choose another place"
    with pytest.raises(InputError, match="run: nothing can be made there"):
        FileLock().acquire(tmp_path/"run")
