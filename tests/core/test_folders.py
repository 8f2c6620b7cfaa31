"Folders that are made for a file go again when nothing comes of it."
import pytest

from ctseg.core.atomic import atomic_path
from ctseg.core.errors import InputError
from ctseg.core.folders import made_folder


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
