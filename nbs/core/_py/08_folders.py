# %% [markdown]
# # Folders
#
# > Folders that are made on the way to a file, and go again when nothing comes of it.

# %%
#| default_exp core.folders

# %%
#| export
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

# %%
#| hide
import tempfile

from fastcore.test import test_eq


# %% [markdown]
# A file or a folder may need folders above it. They are made when it is written. If that fails, they are removed again, so that a
# mistyped name leaves nothing behind.

# %%
#| export
def remove_empty(folders: list[Path]) -> None:
    "Remove the folders that are empty, the first one first, up to one that is not."
    for folder in folders:
        if not os.path.isdir(folder): continue
        try: folder.rmdir()
        except OSError: return

def make_folder(folder: Path) -> list[Path]: # those that were made, the innermost first
    "Make a folder, and those above it that are missing. Where that fails, none of them is left."
    missing = [each for each in (folder, *folder.parents) if not os.path.exists(each)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        remove_empty(missing)
        raise
    return missing


# %%
#| export
@contextlib.contextmanager
def made_folder(folder: Path) -> Iterator[list[Path]]:
    "`make_folder`, for a block that fills it: when the block fails, the folders go that are empty."
    made = make_folder(folder)
    try:
        yield made
    except BaseException:
        remove_empty(made)
        raise


# %%
with tempfile.TemporaryDirectory() as d:
    with made_folder(Path(d)/"one"/"two") as made: print([folder.name for folder in made])
    remove_empty(made)
    try: make_folder(Path(d)/"one"/("x"*300))  # longer than a disk takes
    except OSError: test_eq(list(Path(d).iterdir()), [])
