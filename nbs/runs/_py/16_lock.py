# %% [markdown]
# # Lock
#
# > Only one process may train in a folder.

# %%
#| default_exp runs.lock

# %%
#| export
import contextlib
import json
import os
import socket
from pathlib import Path
from typing import Any, BinaryIO

import psutil
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from ctseg.core.errors import InputError
from ctseg.core.folders import make_folder, remove_empty
from ctseg.core.paths import disk_errors

# %%
#| hide
import tempfile

from fastcore.test import test_eq

# %% [markdown]
# Two processes that train in one folder would overwrite each other's checkpoints. The first thing a process does in a run folder is to lock the file `.lock`, which holds nothing and which nobody renames.
# The lock is the operating system's, so it goes with the process that held it, however that ended.
#
# Some network disks have no locks. There, the process writes a file `.owner` that says who it is. Another process on the same machine can see whether the owner still lives. On another machine it cannot, and the error says which file to delete.

# %%
#| export
LOCK, OWNER = ".lock", ".owner"
NO_RUN = {LOCK, OWNER}  # files that do not make a folder a run

def this_process() -> dict[str, Any]:
    "What tells this process from all others."
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}

def lives(owner: Any) -> bool:
    "Is this process, on this machine, still there? One of another machine counts as alive."
    if not isinstance(owner, dict): return False
    if owner.get("host") != socket.gethostname(): return True
    try:
        return psutil.Process(owner["pid"]).create_time() == owner["started"]
    except (psutil.Error, KeyError, TypeError, ValueError, OverflowError):
        return False


# %% [markdown]
# A process is known by its number *and* by when it began, because numbers are used again.

# %%
print("this process lives:", lives(this_process()))
test_eq(lives(this_process()), True)
test_eq(lives(this_process() | {"started": 0}), False)  # its number went to another process since


# %%
#| export
def lock_file(path: Path) -> BinaryIO | None:
    "An open file that locks the path until it is closed; None if the file went while it was being locked. Raises `OSError` without a lock."
    if fcntl is None: raise OSError("no locks on this system")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        same = path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino
        if same:
            return os.fdopen(descriptor, "rb")
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


# %%
#| export
def in_use(folder: Path, remedy: str) -> InputError:
    "The error for a folder that another process holds."
    return InputError(f"{folder}: another process is training in it; {remedy}")

def claim(folder: Path) -> Path: # the file that says so
    "Claim a folder by a file that says who is at work, where there are no locks; `InputError` if another has it."
    path, owner = folder/OWNER, None
    with contextlib.suppress(OSError, ValueError):
        owner = json.loads(path.read_text())
    if lives(owner):
        raise in_use(folder, f"wait for it, choose another --out, or delete {path} if it has ended")
    path.unlink(missing_ok=True)
    try:
        with open(path, "x") as f:
            json.dump(this_process(), f)
    except FileExistsError:
        raise in_use(folder, "wait for it, or choose another --out") from None
    return path


# %%
#| export
class FileLock:
    "A claim to a folder, held until `release` or the end of the process."
    def __init__(self):
        self.file: BinaryIO | None = None
        self.path: Path | None = None
        self.made: list[Path] = []  # folders, the innermost first

    def acquire(self, folder: Path) -> None:
        "`InputError` if another process holds the folder, which is made where it is missing. Once held, it stays so."
        if self.path is not None: return
        with disk_errors(folder):
            self.made = make_folder(folder)
        try:
            while self.file is None: self.file = lock_file(folder/LOCK)
        except BlockingIOError:
            raise in_use(folder, "wait for it, or choose another --out") from None
        except OSError:  # a file system without locks
            with disk_errors(folder): self.path = claim(folder)
        else:
            self.path = folder/LOCK

    def release(self) -> None:
        "Let others have it; the folders that were made go again if they are still empty."
        if self.path is None: return
        with contextlib.suppress(OSError): self.path.unlink()
        if self.file is not None: self.file.close()
        remove_empty(self.made)
        self.file, self.path, self.made = None, None, []


# %%
with tempfile.TemporaryDirectory() as d:
    first, second = FileLock(), FileLock()
    first.acquire(Path(d))
    try: second.acquire(Path(d))
    except InputError as e: print(str(e).replace(d, "…"))
    first.release()
    second.acquire(Path(d))
    second.release()
    claim(Path(d))
    try: claim(Path(d))
    except InputError as e: print(str(e).replace(d, "…"))
