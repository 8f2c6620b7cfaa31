# %% [markdown]
# # Paths
#
# > What cannot be read or written at a path is told before the work begins.
#
# - skip_showdoc: true

# %%
#| default_exp core.paths

# %%
#| export
import contextlib
import errno
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from ctseg.core.errors import InputError

# %%
#| hide
import errno
from pathlib import Path

from fastcore.test import test_eq

# %% [markdown]
# A path comes from the user, and a name may come from a file of somebody else. What stands in the way is told in one line that names it.

# %% [markdown]
# ## A disk that refuses
#
# A disk that is full or read-only is the user's to mend. Such a failure becomes an `InputError` that names the file. Other failures stay what they are.

# %%
#| export
DISK_ERRORS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EEXIST: "a part of the path is a file, not a folder",
    errno.EISDIR: "it is a folder",
    errno.ELOOP: "a part of the path is a link that leads to itself",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EFBIG: "it would be larger than a file may be here (`ulimit -f`)",
    errno.ESPIPE: "this kind of file needs a file on a disk, not a pipe",
    errno.EPIPE: "nobody reads the pipe any more",
}


# %%
#| export
@contextlib.contextmanager
def disk_errors(path: str | Path) -> Iterator[None]:
    "Within the block, a failure of the disk becomes an `InputError` that names `path`."
    try:
        yield
    except OSError as e:
        if e.errno not in DISK_ERRORS: raise
        raise InputError(f"cannot write {path}: {DISK_ERRORS[e.errno]}") from e

def disk_full(error: BaseException) -> bool:
    "Does an error, as it is or as `disk_errors` tells it, say that a disk takes no more?"
    causes = (error, error.__cause__)
    return any(isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT) for e in causes)


# %%
try:
    with disk_errors("scores.csv"): raise OSError(errno.ENOSPC, "No space left on device")
except InputError as e: print(e, disk_full(e))

# %% [markdown]
# ## A file that the system does not give
#
# To copy a damaged file again helps. It does not help where permission, the network drive or memory is what lacks. Whoever catches all errors of a reader asks `refuse_unread` first.

# %%
#| export
_TO_READ = {
    errno.EACCES: "change its permissions",
    errno.EPERM: "change its permissions",
    errno.EMFILE: "allow more open files (`ulimit -n`)",
    errno.EIO: "the disk or its network fails; try again, or copy the file from elsewhere",
    errno.ESTALE: "the network drive has lost it; try again",
}
_OF_CONTENT = (None, errno.EINVAL, errno.ENOENT)  # a library's, of a place in the content, of what is missing
_OF_MEMORY = ("allocate memory", "out of memory")  # as PyTorch says it

def _memory_lacks(error: BaseException) -> bool:
    "Is this how Python, or PyTorch, says so?"
    if isinstance(error, MemoryError): return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OF_MEMORY)

class Unread(InputError):
    "The system does not give a file. It may be whole."

def unread(path: str | Path, error: OSError) -> Unread: # to be raised by the caller
    "The error for a file that the system does not give: why, and what to do."
    remedy = _TO_READ.get(error.errno)
    return Unread(f"{path}: cannot be read ({error.strerror})" + (f"; {remedy}" if remedy else ""))

def refuse_unread(path: str | Path, error: BaseException) -> None:
    "`Unread` for an error of the system; one of memory, or `Unread`, again: no sign of damage. Other errors are not told here."
    if isinstance(error, Unread) or _memory_lacks(error): raise error
    if isinstance(error, OSError) and error.errno not in _OF_CONTENT:
        raise unread(path, error) from None


# %%
try: refuse_unread("model.safetensors", PermissionError(errno.EACCES, "Permission denied"))
except InputError as e: print(e)
refuse_unread("model.safetensors", EOFError("cut off"))  # says nothing

# %% [markdown]
# A pipe, a terminal or `/dev/zero` may never end. Where a file is expected, they are told before they are opened.

# %%
#| export
MAX_TEXT = 1 << 28  # bytes of a file of text, such as JSON
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
_OF_SYSTEM = re.compile("/(proc|sys)/")  # their files say that they are empty, and some never end

def refuse_special(path: str | Path, most: int | None = None) -> None:
    "`InputError` for a pipe, a device or a socket, and for a file of more than `most` bytes. What is missing is not told here."
    try:
        state = os.stat(path)
    except OSError:
        return
    kind = _KINDS.get(stat.S_IFMT(state.st_mode))
    if not kind and not state.st_size and _OF_SYSTEM.match(str(real_path(path))):
        kind = "a file of the system"
    if kind:
        raise InputError(f"{path}: {kind}, expected a file; write its content to a file first")
    if most and state.st_size > most:
        size = f"{_megabytes(state.st_size)}, more than {_megabytes(most)}"
        raise InputError(f"{path}: {size}; it is damaged, or another file")

def _megabytes(size: int) -> str:
    "A number of bytes in words."
    return f"{size/2**20:.3g} MB" if size < 2**30 else f"{size/2**30:.3g} GB"


# %%
try: refuse_special("/dev/zero")
except InputError as e: print(e)


# %% [markdown]
# ## Where a path leads
#
# A link may lead to another file, and to itself. Two dots mean another folder as soon as one above them is made.

# %%
#| export
def real_path(path: str | Path) -> Path:
    "The absolute path without links; of a link that leads to itself, the link. `Path.resolve` raises for it in some Pythons."
    if "\0" in str(path): raise InputError(f"{path}: a path holds no NUL")
    return Path(os.path.realpath(path))


# %% [markdown]
# An output needs a name of its own, in a place where nothing lies:

# %%
#| export
def refuse_nameless(path: Path) -> None:
    "`InputError` for `.`, which cannot be replaced, and a path that ends in `..`, whose meaning changes as folders are made."
    if path.name in ("", ".."):
        raise InputError(f"cannot write {path}: it does not end in a name; give one")

def refuse_loop(path: Path) -> None:
    "`InputError` for a link that leads to itself."
    if path.is_symlink() and real_path(path).is_symlink():
        raise InputError(f"cannot write {path}: it is a link that leads to itself")



# %%
test_eq(real_path("."), Path.cwd())
for wrong in (lambda: real_path("a\0b"), lambda: refuse_nameless(Path("new/.."))):
    try: wrong()
    except InputError as e: print(e)


# %% [markdown]
# A folder that is read is to stay as it is: results inside of it would be found as input the next time.

# %%
#| export
def refuse_inside(out: str | Path, places: Iterable[str | Path | None]) -> None:
    "`InputError` for an output that is one of the folders that are read, or lies in one."
    real = real_path(out)
    for place in places:
        if not place or not os.path.isdir(place): continue
        if real.is_relative_to(real_path(place)):
            raise InputError(f"{out}: lies in {place}, which is read; choose a place outside of it")


# %%
refuse_inside("results", ["no folder", None])
try: refuse_inside("results", ["."])
except InputError as e: print(e)

# %% [markdown]
# ## Names from elsewhere
#
# A patient's name, a structure's name or a series description may hold anything: a slash, two dots, a line break, 300 letters. A file name made of such a text goes through `safe_name`.

# %%
#| export
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # devices, on Windows

def safe_name(text: str) -> str:
    "`text` as a file name of at most 80 bytes: letters, digits, `-`, `_` and inner dots; never empty, hidden or a path."
    name = unicodedata.normalize("NFC", str(text))
    name = re.sub(r"[^\w.-]+|\.{2,}", "_", name)
    name = name.encode()[:80].decode(errors="ignore").strip("._-")
    return f"_{name}" if not name or _RESERVED.fullmatch(name) else name


# %%
for text in ("Anna Müller", "../../etc/passwd", "a/b\\c:d\n", ".hidden", "", "NUL.txt", "x"*300):
    print(f"{text[:20]!r:26} {safe_name(text)[:20]}")
