"A path is told before it does harm, and a name from elsewhere becomes one that the disk takes."
import os

import pytest

from ctseg.core import paths
from ctseg.core.errors import InputError


@pytest.mark.parametrize("text", [
    "../../etc/passwd", "/etc/passwd", "..", ".", "", " ", "a/b", "a\\b", "a\0b", "a\nb", ".hidden", "-rf", "con", "NUL.nii", "C:\\x", "~root", "$(id)",
    "‮gpj.exe", "ä"*200, "é́"*90, "🫀", "x"*300, "*?<>|", "Anna Müller",
])
def test_names_from_elsewhere(tmp_path, text):
    name = paths.safe_name(text)
    assert name and name.isprintable() and not set('/\\:*?"<>|$~ ') & set(name)
    assert (
        name[0] not in ".-"
        and not name.endswith(".")
        and len(name.encode()) <= 81
        and name.split(".")[0].lower() not in ("con", "nul")
    )
    path = tmp_path/f"{name}.nii.gz"
    path.write_text("a")  # the disk takes it
    assert list(tmp_path.iterdir()) == [path] and path.resolve().parent == tmp_path.resolve()
    assert paths.safe_name(name) == name


@pytest.mark.skipif(not os.path.exists("/proc/self/pagemap"), reason="no such system files")
def test_endless_files_of_the_system_are_told(tmp_path):
    (tmp_path/"0.png").symlink_to("/proc/self/pagemap")
    for path in ("/proc/self/pagemap", "/proc/self/environ", tmp_path/"0.png"):
        with pytest.raises(InputError, match="a file of the system"): paths.refuse_special(path)
    (tmp_path/"empty").touch()
    paths.refuse_special(tmp_path/"empty")


def test_a_path_with_a_nul_is_told():
    with pytest.raises(InputError, match="NUL"): paths.real_path("a\0b")
