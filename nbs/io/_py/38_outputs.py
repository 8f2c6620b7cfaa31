# %% [markdown]
# # Outputs
#
# > Where files may be written: into a new folder, under a name that cannot leave it.

# %%
#| default_exp io.outputs

# %%
#| export
from pathlib import Path

from ctseg.core.atomic import check_place
from ctseg.core.errors import InputError
from ctseg.core.json_files import json_checksum
from ctseg.core.paths import disk_errors, real_path, refuse_nameless

# %%
#| hide
import tempfile

from fastcore.test import test_eq, test_fail


# %% [markdown]
# An import or export may take hours. Nothing of the user's may be lost in it, so the folder it writes must be new or empty.

# %%
#| export
def new_folder(
    out,
    filled: bool = False, # one that is there already stays, and is filled; else it is replaced
) -> Path:
    "The path of an output folder. Raises `InputError` if it holds anything already, or cannot be written."
    out = Path(out)
    refuse_nameless(out)
    with disk_errors(out):
        check_place(out/"new" if filled and out.is_dir() else out)
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{out}: already exists and is not empty; choose a new folder")
        return real_path(out) if out.is_symlink() else out


# %%
work = Path(tempfile.mkdtemp())
print(new_folder(work/"new").name)
(work/"mine.txt").write_text("x")
test_fail(lambda: new_folder(work), contains="already exists and is not empty")


# %% [markdown]
# Names of files often come from other files: an export calls its files as the index of the folder calls the volumes. A name such as
# `../../.bashrc` would write outside of the folder. So every name that becomes a file goes through one function.

# %%
#| export
def output_name(
    name: str,
    where: str, # what a message calls the source of the name
) -> str: # the same name
    "A name that a file may have. Raises `InputError` for one that could leave its folder or hide in it."
    plain = isinstance(name, str) and name.isprintable() and not set(name) & set('/\\:')
    if not plain or not name.strip() or name.startswith("."):
        raise InputError(f"{where}: {str(name)[:60]!r} cannot be the name of a file; "
                         "expected a plain name such as v000, without slashes or leading dots")
    return name


# %%
test_eq(
    [output_name(name, "index.json") for name in ("v000", "Œil gauche 2", "p1.2")],
    ["v000", "Œil gauche 2", "p1.2"],
)
for bad in ("../x", "/etc/x", "a/b", "..", ".hidden", "c:x", "a\\b", "a\nb", "", None):
    test_fail(lambda: output_name(bad, "index.json"), contains="index.json: ")
print("refused: 10 of 10")


# %% [markdown]
# The index of a folder leads every mask home. One digit that changed would put a structure a centimetre off, so the index carries a checksum.

# %%
#| export
def index_seal(volumes: dict[str, dict], images: dict[str, dict[str, dict]]) -> str:
    "A CRC-32 of the content of an `index.json`, whatever the order of its names."
    return json_checksum([volumes, images])

def sealed_index(
    volumes: dict[str, dict], # volume id → its entry
    images: dict[str, dict[str, dict]], # split → image name → its line
) -> dict:
    "What an `index.json` holds."
    return {"version": 1, "seal": index_seal(volumes, images), "volumes": volumes, "images": images}


# %%
print(index_seal({"v000": {"shape": [2, 3, 4]}}, {"test": {}}))
test_eq(index_seal({"a": {}, "b": {}}, {}), index_seal({"b": {}, "a": {}}, {}))
