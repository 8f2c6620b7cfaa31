# %% [markdown]
# # Whole files
#
# > A file is whole or not there.
#
# - skip_showdoc: true

# %%
#| default_exp core.atomic

# %%
#| export
import contextlib
import errno
import glob
import os
import re
import shutil
import stat
import tempfile
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None

from ctseg.core.errors import InputError
from ctseg.core.folders import lock_folder, made_folder, make_folder, remove_empty
from ctseg.core.paths import disk_errors, real_path, refuse_loop, refuse_nameless

# %%
#| hide
import contextlib
import os
import tempfile
from pathlib import Path

from fastcore.test import test_eq

# %% [markdown]
# A file has either its old content or its whole new content, **never half of it**. This holds everywhere in `ctseg`, so it is done once, here.
#
# `atomic_path` hands out a temporary name *in the same folder*, because a rename is atomic only within one file system. If the block ends well, the temporary file takes the final name. If it fails, nothing is left, not even a folder made for the file.
#
# A folder cannot be renamed over a full one. The old folder is moved aside first, and goes back if the second rename fails.
#
# Two things are no files to be replaced. A link stays a link: the file it points to is written. A pipe, a terminal or `/dev/null` is written to directly. A pipe needs somebody who reads it, or the write would wait for ever.

# %%
#| export
_DESCRIPTOR = re.compile(r"/dev/(stdin|stdout|stderr|fd/\d+)|/proc/.+/fd/\d+")  # open files of any kind

def _is_stream(path: Path) -> bool:
    "Is there something at `path` that is neither a file nor a folder, such as a pipe, a terminal or `/dev/null`?"
    if _DESCRIPTOR.fullmatch(str(path)): return True
    return path.exists() and not path.is_file() and not path.is_dir()

def _final_path(path: Path) -> Path:
    "Where a write to `path` ends up: the target of a link, else `path` itself; `InputError` if that is no place."
    refuse_nameless(path)
    refuse_loop(path)
    return real_path(path) if path.is_symlink() else path


# %% [markdown]
# A link leads to the file that it points to, even if that does not exist yet.

# %%
with tempfile.TemporaryDirectory() as d:
    link = Path(d)/"latest.json"
    link.symlink_to("2024.json")
    test_eq(_final_path(link).name, "2024.json")
    loop = Path(d)/"loop"
    loop.symlink_to(loop)
    try: _final_path(loop)
    except InputError as e: print(str(e).replace(d, "…"))
    test_eq([_is_stream(Path(p)) for p in ("/dev/null", "/dev/stdout", d, link)], [True, True, False, False])

# %%
#| export
_PATIENCE = 3.  # seconds

@contextlib.contextmanager
def _with_reader(path: Path) -> Iterator[Path]:
    "`path`, a stream, to be written to directly. A named pipe is held open within the block; `InputError` if nobody reads it."
    if not stat.S_ISFIFO(os.stat(path).st_mode) or _DESCRIPTOR.fullmatch(str(path)):
        yield path
        return
    end, descriptor = time.monotonic() + _PATIENCE, -1
    while descriptor < 0:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as e:
            if e.errno != errno.ENXIO: raise
            if time.monotonic() > end:
                problem = "it is a pipe that nobody reads; start its reader first"
                raise InputError(f"cannot write {path}: {problem}") from None
            time.sleep(.02)
    try:
        yield path
    finally:
        os.close(descriptor)


# %%
if hasattr(os, "mkfifo"):
    with tempfile.TemporaryDirectory() as d:
        pipe = Path(d)/"pipe"
        os.mkfifo(pipe)
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        with _with_reader(pipe): pipe.write_text("read by somebody")
        test_eq(os.read(reader, 99), b"read by somebody")
        os.close(reader)

# %%
#| export
PART = ".part"  # how the names of unfinished files end
_OLD = ".old"  # inside such a folder: the folder that is being replaced

def _put_in_place(new: Path, path: Path, aside: Path) -> None:
    "Rename `new` to `path`; a folder that is there already is moved to `aside` first."
    if new.is_dir() and path.is_dir(): os.replace(path, aside)
    os.replace(new, path)

def _put_new(new: Path, path: Path) -> None:
    "Rename a folder to `path`, where nothing is, or an empty folder; `InputError` for anything else."
    with contextlib.suppress(OSError): path.rmdir()
    try:
        if path.exists(): raise FileExistsError
        os.rename(new, path)
    except OSError as e:
        if not path.exists(): raise
        raise InputError(f"{path}: another command has written it meanwhile; choose another name") from e


# %%
#| export
def _put_back(path: Path, aside: Path) -> None:
    "Undo the first half of `_put_in_place` where the second did not happen."
    if os.path.exists(path) or not aside.exists(): return
    with contextlib.suppress(OSError): os.rename(aside, path)

def remove(path: Path) -> None:
    "Remove a file, a link, or a folder with all it holds."
    if path.is_dir() and not path.is_symlink(): shutil.rmtree(path)
    else: path.unlink(missing_ok=True)


# %% [markdown]
# A process that is killed cannot tidy up. The next writer of the same file does it: it removes the temporary folders of writers that live no more. A living writer holds a lock on its folder, which the system takes away when the process ends.

# %%
#| export
def _hold_prefix(path: Path) -> str:
    "How the names of temporary folders beside `path` begin; short enough for any name that the disk takes."
    name = os.fsencode(path.name)
    return f".{path.name}." if len(name) <= 200 else f".{zlib.crc32(name):08x}."

def sweep(path: Path, older_than: float = 60.) -> None:
    "Remove what killed writers of `path` left beside it; a folder younger than `older_than` seconds may not be locked yet."
    for left in path.parent.glob(f"{glob.escape(_hold_prefix(path))}*{PART}"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime < older_than: continue
            lock = lock_folder(left)
            if lock is None: continue
            _put_back(path, left/_OLD)
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)


# %%
with tempfile.TemporaryDirectory() as d:
    left = Path(d)/f".a.txt.killed{PART}"
    left.mkdir()
    lock = lock_folder(left)                    # as a living writer does
    sweep(Path(d)/"a.txt", older_than=-1)
    test_eq(left.exists(), True)
    if lock is not None: os.close(lock)         # as the system does when the writer ends
    sweep(Path(d)/"a.txt", older_than=-1)
    print("removed" if not left.exists() else "no locks on this system")


# %% [markdown]
# A rename that survives a power cut needs the data on the disk first, and the new name after it.

# %%
#| export
def flush_to_disk(path: Path) -> None:
    "Wait until a file, or a folder with all it holds, is on the disk; folders only where the system can do that."
    if path.is_dir():
        inside = [p for p in path.rglob("*") if not p.is_symlink()]
        _flush_all(inside)
    _flush_one(path)

def _flush_all(paths: list[Path]) -> None:
    "Many at once, as a disk takes them; one after the other where memory is limited."
    if _memory_is_limited():  # Python may wait for ever for a thread that finds no room
        for path in paths: _flush_one(path)
        return
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(_flush_one, paths))  # raises what went wrong

def _memory_is_limited() -> bool:
    "Is there a limit of this process (`ulimit -v`)? Each thread reserves some 100 MB of it."
    return resource is not None and resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY

def _flush_one(path: Path) -> None:
    "Wait until one file, or the names in one folder, are on the disk."
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return  # a folder on Windows, or a file that may not be read
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir(): raise
    finally:
        os.close(descriptor)


# %% [markdown]
# The content is unchanged; it is only certain to be on the disk.

# %%
with tempfile.TemporaryDirectory() as d:
    (Path(d)/"a.txt").write_text("kept")
    flush_to_disk(Path(d))
    test_eq((Path(d)/"a.txt").read_text(), "kept")

# %% [markdown]
# Now the pieces are put together. What is made for a write is taken away again by who made it: first the temporary folder, then the [folders](08_folders.ipynb) above.

# %%
#| export
_TRIES = 5

def _clear(hold: Path) -> None:
    "Remove a temporary folder as far as that goes. A library that was interrupted may still write into it for a moment."
    for attempt in range(_TRIES):
        if attempt: time.sleep(.1)
        _remove_inside(hold)
        if not hold.exists(): return

def _remove_inside(hold: Path) -> None:
    "Remove a folder and what is in it, with one descriptor at a time: there may be no more of them."
    for place, folders, files in os.walk(hold, topdown=False):
        for path in (Path(place)/name for name in (*files, *folders)):
            with contextlib.suppress(OSError):
                if path.is_dir() and not path.is_symlink(): path.rmdir()
                else: path.unlink()
    with contextlib.suppress(OSError): hold.rmdir()


# %%
#| export
@contextlib.contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    "A temporary folder beside `path`, locked within the block. It stays only if it has the one copy of what was at `path`."
    sweep(path)
    beside = os.path.abspath(path.parent)  # libraries take a leading ~ for somebody's home
    try:
        hold = Path(tempfile.mkdtemp(prefix=_hold_prefix(path), suffix=PART, dir=beside))
    except FileNotFoundError:
        raise InputError(f"cannot write {path}: nothing can be made there; choose another place") from None
    lock = None
    try:
        lock = lock_folder(hold)
        yield hold
    finally:
        _put_back(path, hold/_OLD)
        only_copy = (hold/_OLD).exists() and not os.path.exists(path)
        if lock is not None: os.close(lock)
        if not only_copy: _clear(hold)


# %%
with tempfile.TemporaryDirectory() as d:
    path = Path(d)/"new"/"a.txt"
    failed = contextlib.suppress(InterruptedError)
    with failed, made_folder(path.parent) as made, _folder_beside(path) as hold:
        print([folder.name for folder in made], "and one that ends in", hold.suffix)
        raise InterruptedError
    test_eq(list(Path(d).iterdir()), [])  # nothing came of it


# %%
#| export
@contextlib.contextmanager
def _replacing(path: Path, private: bool, new_only: bool) -> Iterator[Path]:
    "A temporary path; what is there at the end of the block takes the place of `path`, on the disk and all at once."
    with made_folder(path.parent, _asked_for(path)) as made, _folder_beside(path) as hold:
        new = hold/path.name
        yield new
        if private: os.chmod(new, 0o600)
        flush_to_disk(new)
        if new_only: _put_new(new, path)
        else: _put_in_place(new, path, hold/_OLD)
        for folder in (path, *made): _flush_one(folder.parent)

def _asked_for(path: Path) -> Path:
    "`path` as a user knows it: without the temporary folder of a write that this one is part of."
    return Path(*[part for part in path.parts if not (part.startswith(".") and part.endswith(PART))])

@contextlib.contextmanager
def atomic_path(
    path: str | Path, # the final path, a file or a folder
    private: bool = False, # nobody else may read it
    new: bool = False, # a folder: `InputError` if something has come to its place meanwhile
) -> Iterator[Path]: # a temporary path beside it, with the same name
    "Write to the temporary path that is yielded; it takes the name `path` when the block ends well, and goes when it fails."
    path = Path(path)
    stream = _is_stream(path)
    if not stream: path = _final_path(path)
    write = _with_reader(path) if stream else _replacing(path, private, new)
    with disk_errors(_asked_for(path)), write as target: yield target


# %% [markdown]
# A write that succeeds, one that is cut in the middle, and one that never began:

# %%
with tempfile.TemporaryDirectory() as d:
    target = Path(d)/"new"/"a.txt"
    with atomic_path(target) as tmp: tmp.write_text("one")
    test_eq(target.read_text(), "one")
    with contextlib.suppress(KeyboardInterrupt):
        with atomic_path(target) as tmp:
            tmp.write_text("tw")
            raise KeyboardInterrupt  # the session is cut in the middle of a write
    test_eq(target.read_text(), "one")
    test_eq(list(target.parent.iterdir()), [target])  # and nothing is left over
    with contextlib.suppress(KeyboardInterrupt):
        with atomic_path(Path(d)/"never"/"made"/"b.txt") as tmp: raise KeyboardInterrupt
    test_eq([p.name for p in Path(d).iterdir()], ["new"])  # not even an empty folder


# %% [markdown]
# ## Before the work
#
# What a command works at for hours must find its place at the end. Whether a folder can be written is asked by writing: permissions do not tell of a
# read-only disk, a quota, or a place of the system.

# %%
#| export
def check_place(path: str | Path) -> None:
    "`InputError` where `atomic_path` could write nothing. What is made for the trial goes again."
    path = Path(path)
    if _is_stream(path): return
    with disk_errors(path):
        final, made = _final_path(path), []
        if os.path.ismount(final):
            raise InputError(f"cannot write {path}: a disk is mounted there; choose a name inside of it")
        try:
            made = make_folder(final.parent, path)
            with _folder_beside(final) as hold: (hold/final.name).touch()
        finally: remove_empty(made)

def check_file_place(path: str | Path | None) -> None:
    "`check_place` for a file, which no folder may be in the place of; nothing for None."
    if not path: return
    if Path(path).is_dir():
        raise InputError(f"cannot write {path}: it is a folder")
    check_place(path)

def refuse_existing(path: Path) -> None:
    "`check_place` for what is to be new: `InputError` where something is already."
    check_place(path)
    if path.exists():
        raise InputError(f"{path}: exists already; choose another place, or remove it first")


# %%
with tempfile.TemporaryDirectory() as d:
    check_place(Path(d)/"new"/"a.txt")
    test_eq(list(Path(d).iterdir()), [])
    (Path(d)/"file").touch()
    for check, place in ((check_place, "file/a.txt"), (check_file_place, "."), (refuse_existing, "file")):
        try: check(Path(d)/place)
        except InputError as e: print(str(e).replace(d, "…"))
