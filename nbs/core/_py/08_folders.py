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

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from ctseg.core.errors import InputError
from ctseg.core.paths import disk_errors

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

def make_folder(
    folder: Path,
    asked: Path | None = None, # what a message names; None: the folder
) -> list[Path]: # those that were made, the innermost first
    "Make a folder, and those above it that are missing. Where that fails, none of them is left."
    missing = [each for each in (folder, *folder.parents) if not os.path.exists(each)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        remove_empty(missing)
        if not isinstance(e, FileNotFoundError): raise
        problem = "nothing can be made there; choose another place"  # in /proc, say
        raise InputError(f"cannot write {asked or folder}: {problem}") from None
    return missing


# %%
#| export
@contextlib.contextmanager
def made_folder(folder: Path, asked: Path | None = None) -> Iterator[list[Path]]:
    "`make_folder`, for a block that fills it: when the block fails, the folders go that are empty."
    made = make_folder(folder, asked)
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


# %% [markdown]
# Two commands that write one folder at a time would mix their files. The first one locks a folder; the second is told.

# %%
#| export
def lock_folder(folder: Path) -> int | None:
    "A descriptor that locks the folder until it is closed; None where there are no locks. `BlockingIOError` if another process holds it."
    if fcntl is None: return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:  # a file system without locks
        os.close(descriptor)
        return None


# %% [markdown]
# A command makes its folder and holds it as long as it writes:

# %%
#| export
def in_work(out: Path) -> InputError:
    "The error for an output that another process is writing."
    return InputError(f"{out}: another command is writing it; wait for it, or choose another name")

@contextlib.contextmanager
def alone_in(folder: Path, out: Path) -> Iterator[None]:
    "`made_folder`, held within the block by this process, which writes `out`; `InputError` if another one holds it."
    with contextlib.ExitStack() as stack:
        with disk_errors(out): stack.enter_context(made_folder(folder, out))
        try: descriptor = lock_folder(folder)
        except (BlockingIOError, FileNotFoundError): raise in_work(out) from None
        try:
            yield
        finally:
            if descriptor is not None: os.close(descriptor)


# %%
with tempfile.TemporaryDirectory() as d, alone_in(Path(d)/"work", Path("out")):
    try:
        with alone_in(Path(d)/"work", Path("out")): pass
    except InputError as e: print(e)
