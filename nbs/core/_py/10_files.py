# %% [markdown]
# # Files and errors
#
# > A file is whole or not there, and a mistake is told in one line.
#
# - skip_showdoc: true

# %%
#| default_exp core.files

# %%
#| export
import contextlib
import difflib
import errno
import glob
import json
import math
import os
import re
import shutil
import stat
import tempfile
import time
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from ctseg.core.folders import made_folder

# %%
#| hide
import contextlib
import os
import tempfile
from pathlib import Path

from fastcore.test import test_eq

# %% [markdown]
# Two promises hold everywhere in `ctseg`, so they are made once, here. A user's mistake ends in **one clear line** and exit status 2, not in a traceback. A file has either its old content or its whole new content, **never half of it**.
#
# ## One line for a mistake
#
# An `InputError` says what is wrong, where, what was expected, and how to mend it. The command line prints its text and stops with status 2. In a notebook it is an ordinary `ValueError`.

# %%
#| export
_MAX_MESSAGE = 1200  # characters

def printable(text: str) -> str:
    "`text` in one line that any terminal can show: what is no letter, sign or plain space is written as its number."
    if text.isprintable(): return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

def say(line: str, file: TextIO | None = None) -> None:
    "Print a line that may hold the name of a file, or what one contains: no terminal is to obey it."
    print(printable(line), file=file, flush=True)

class InputError(ValueError):
    "A mistake in what the user gave: told in one line, without a traceback, exit status 2."
    def __str__(self) -> str:
        text = printable(super().__str__())
        if len(text) <= _MAX_MESSAGE: return text
        return f"{text[:_MAX_MESSAGE//2]} … {text[-_MAX_MESSAGE//2:]}"


# %% [markdown]
# A name in a file of somebody else may hold a line break, or the codes that move a terminal's cursor. None reaches the terminal.

# %%
print(InputError("class 'liver\n\x1b[2J' is unknown"))

# %% [markdown]
# What was found in a file may be a thousand names. A message shows the first few, and says how many others there are.

# %%
#| export
MOST_NAMES = 20  # of a list in a message

def some_of(names: Iterable, length: int = 60) -> str:
    "Names for a message: all of them, or the first few of more than `MOST_NAMES` and how many others there are, each cut to `length` characters."
    every = list(map(str, names))
    few = every if len(every) <= MOST_NAMES else every[:MOST_NAMES//2]
    shown = [name if len(name) <= length else f"{name[:length]}…" for name in few]
    others = len(every) - len(few)
    if others: shown.append(f"and {others} others")
    return ", ".join(shown)


# %%
print(some_of(["liver", "spleen"]))
print(some_of(f"rib {i}" for i in range(24)))


# %% [markdown]
# The commonest mistake is a misspelt name. The answer should be the right name.

# %%
#| export
def did_you_mean(
    kind: str, # what the name is a name of, e.g. "recipe"
    name: str, # the unknown name
    options: Iterable, # the valid names
) -> InputError: # to be raised by the caller
    "An error for an unknown name that shows the nearest valid ones; the caller raises it."
    valid = sorted(map(str, options))
    wanted = str(name)[:200]
    near = difflib.get_close_matches(wanted, valid[:10_000], n=3, cutoff=0.5)
    hint = f"there are: {some_of(valid)}" if valid else "there is none"
    if near: hint = f"did you mean {' or '.join(near)}?"
    elif len(valid) > MOST_NAMES:
        nearest = difflib.get_close_matches(wanted, valid[:10_000], n=5, cutoff=0)
        hint = f"of {len(valid)} names the nearest are: {some_of(nearest)}"
    return InputError(f"unknown {kind} {wanted!r}; {hint}")


# %%
print(did_you_mean("recipe", "marginl", ["original-attunet", "masked", "marginal"]))
print(did_you_mean("recipe", "?", ["original-attunet", "masked", "marginal"]))
print(did_you_mean("class", "gonad", [f"vertebra {i}" for i in range(90)] + ["aorta", "gland", "colon"]))

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

def refuse_folder(path: str | Path | None) -> None:
    "`InputError` if a file shall be written where a folder is. `atomic_path` says so too, but after the work."
    if path and Path(path).is_dir():
        raise InputError(f"cannot write {path}: it is a folder")


# %%
try:
    with disk_errors("scores.csv"): raise OSError(errno.ENOSPC, "No space left on device")
except InputError as e: print(e)

# %% [markdown]
# A pipe, a terminal or `/dev/zero` may never end. Where a file is expected, they are told before they are opened.

# %%
#| export
MAX_TEXT = 1 << 28  # bytes of a JSON file
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
# ## A file is whole or it is not there
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

def real_path(path: str | Path) -> Path:
    "The absolute path without links; of a link that leads to itself, the link. `Path.resolve` raises for it in some Pythons."
    if "\0" in str(path): raise InputError(f"{path}: a path holds no NUL")
    return Path(os.path.realpath(path))

def refuse_nameless(path: Path) -> None:
    "`InputError` for a path that ends in `..`: what it means changes while the folders above it are made."
    if path.name == "..":
        raise InputError(f"cannot write {path}: it does not end in a name; give one")

def _final_path(path: Path) -> Path:
    "Where a write to `path` ends up: the target of a link, else `path` itself; `InputError` if that is no place."
    refuse_nameless(path)
    if not path.is_symlink(): return path
    final = real_path(path)
    if not final.is_symlink(): return final
    raise InputError(f"cannot write {path}: it is a link that leads to itself")


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
def _lock_folder(folder: Path) -> int | None:
    "A descriptor that locks the folder until it is closed; None if another process holds the lock, or none can be had."
    if fcntl is None: return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor

def _hold_prefix(path: Path) -> str:
    "How the names of temporary folders beside `path` begin; short enough for any name that the disk takes."
    name = os.fsencode(path.name)
    return f".{path.name}." if len(name) <= 200 else f".{zlib.crc32(name):08x}."

def sweep(path: Path, older_than: float = 60.) -> None:
    "Remove what killed writers of `path` left beside it; a folder younger than `older_than` seconds may not be locked yet."
    for left in path.parent.glob(f"{glob.escape(_hold_prefix(path))}*{PART}"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime < older_than: continue
            lock = _lock_folder(left)
            if lock is None: continue
            _put_back(path, left/_OLD)
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)


# %%
with tempfile.TemporaryDirectory() as d:
    left = Path(d)/f".a.txt.killed{PART}"
    left.mkdir()
    lock = _lock_folder(left)                    # as a living writer does
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
        with ThreadPoolExecutor(16) as pool:  # a disk takes many at once
            list(pool.map(_flush_one, inside))  # raises what went wrong
    _flush_one(path)

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
def _clear(hold: Path) -> None:
    "Remove a temporary folder as far as that goes, with one descriptor at a time: there may be no more of them."
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
    hold = Path(tempfile.mkdtemp(prefix=_hold_prefix(path), suffix=PART, dir=beside))
    lock = None
    try:
        lock = _lock_folder(hold)
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
def _replacing(path: Path, private: bool) -> Iterator[Path]:
    "A temporary path; what is there at the end of the block takes the place of `path`, on the disk and all at once."
    with made_folder(path.parent) as made, _folder_beside(path) as hold:
        new = hold/path.name
        yield new
        if private: os.chmod(new, 0o600)
        flush_to_disk(new)
        _put_in_place(new, path, hold/_OLD)
        for folder in (path, *made): _flush_one(folder.parent)

@contextlib.contextmanager
def atomic_path(
    path: str | Path, # the final path, a file or a folder
    private: bool = False, # nobody else may read it
) -> Iterator[Path]: # a temporary path beside it, with the same name
    "Write to the temporary path that is yielded; it takes the name `path` when the block ends well, and goes when it fails."
    path = Path(path)
    stream = _is_stream(path)
    if not stream: path = _final_path(path)
    write = _with_reader(path) if stream else _replacing(path, private)
    with disk_errors(path), write as target: yield target


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


# %% [markdown]
# ## JSON
#
# Damaged JSON is named with its line, and written JSON is whole. JSON has no NaN and no infinity, so both become null.

# %%
#| export
def _unique(pairs: list[tuple]) -> dict:
    "A JSON object; `ValueError` if a key is there twice, of which only one would be believed."
    table = dict(pairs)
    if len(table) == len(pairs): return table
    counts = Counter(name for name, _ in pairs)
    twice = counts.most_common(1)[0][0]
    raise ValueError(f"the key {twice[:60]!r} is there twice")

def _finite(text: str) -> float:
    "A number with a point or an exponent; `ValueError` for what is too large, and for NaN and infinity, which JSON does not have."
    number = float(text)
    if math.isfinite(number): return number
    raise ValueError(f"{text[:20]} is no number that JSON can hold")


# %%
#| export
_MOST_VALUES, _MOST_GROUPS = 1 << 24, 3 << 20  # of values, and of lists and objects, in a JSON file

def parse_json(text: str):
    "The content of a JSON text; `ValueError` for what other readers would refuse or take otherwise, and for more values than memory has room for."
    if text.count(",") > _MOST_VALUES:
        raise ValueError(f"more than {_MOST_VALUES} values")
    if text.count("[") + text.count("{") > _MOST_GROUPS:
        raise ValueError(f"more than {_MOST_GROUPS} lists and objects")
    value = json.loads(text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite)
    if re.search(r"\\u[dD][89a-fA-F]", text):  # half of a letter can be written but not printed or stored
        json.dumps(value, ensure_ascii=False).encode()
    return value


# %%
test_eq(parse_json('{"a": [1, 2.5, "\\ud83d\\ude00"]}'), {"a": [1, 2.5, "😀"]})
for text in ('{"a": 1, "a": 2}', "[NaN]", "[1e400]", '["\\ud800"]', "[" + "9"*5000 + "]"):
    try: parse_json(text)
    except ValueError as e: print(str(e)[:60])


# %%
#| export
def read_json(path: str | Path):
    "The content of a JSON file; an `InputError` names the file, and the line where it is damaged."
    path = Path(path)
    refuse_special(path, MAX_TEXT)
    try:
        data = path.read_bytes()
        if b"\0" in data: raise ValueError("it holds zero bytes")
        return parse_json(data.decode("utf-8-sig"))  # some editors begin with a byte-order mark
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder, expected a JSON file") from None
    except OSError as e:
        raise InputError(f"{path}: cannot be read ({e.strerror})") from None
    except UnicodeEncodeError:
        raise InputError(f"{path}: holds half a letter") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text, expected a JSON file") from None
    except json.JSONDecodeError as e:
        raise InputError(f"{path}, line {e.lineno}: not valid JSON ({e.msg})") from None
    except RecursionError:
        raise InputError(f"{path}: nested too deeply, expected a JSON file of a few levels") from None
    except ValueError as e:  # Python refuses to convert thousands of digits, in many words
        problem = "holds a number with too many digits" if "digits" in str(e) else f"not valid JSON ({e})"
        raise InputError(f"{path}: {problem}") from None


# %%
with tempfile.TemporaryDirectory() as d:
    path = Path(d)/"a.json"
    path.write_text('{"1": "liver",\n oops}')
    try: read_json(path)
    except InputError as e: print(str(e).replace(d, "…"))


# %%
#| export
def finite_only(value):
    "`value` with every number in its lists and dictionaries that is NaN or infinite replaced by None."
    if isinstance(value, dict):
        return {k: finite_only(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_only(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

def write_json(value, path: str | Path, indent: int | None = 1) -> None:
    "Write a value as JSON, whole or not at all; numbers that are NaN or infinite become null."
    text = json.dumps(finite_only(value), indent=indent, allow_nan=False)
    with atomic_path(path) as tmp:
        tmp.write_text(text + "\n", encoding="utf-8")


# %%
with tempfile.TemporaryDirectory() as d:
    path = Path(d)/"a.json"
    write_json({"loss": [float("nan"), float("inf"), .5]}, path)
    test_eq(read_json(path), {"loss": [None, None, .5]})
    print(path.read_text())


# %% [markdown]
# A checksum of what a JSON file says, not of how it is laid out: an editor may indent it anew.

# %%
#| export
def json_checksum(value) -> str:
    "A CRC-32 of a value as JSON, in eight hexadecimal digits, whatever the order of its names."
    content = json.dumps(finite_only(value), sort_keys=True)
    return f"{zlib.crc32(content.encode()):08x}"


# %%
test_eq(json_checksum({"a": 1, "b": (2,)}), json_checksum({"b": [2], "a": 1}))
json_checksum({"a": 1}), json_checksum({"a": 1.5})


# %% [markdown]
# ## Cells of a table
#
# A spreadsheet takes a cell that begins with `=` for a formula and carries it out. A name from somebody else's file must not be one.

# %%
#| export
def csv_cell(value):
    "`value` as a cell that no spreadsheet carries out: a text that could be a formula gets an apostrophe in front."
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return value


# %% [markdown]
# Texts that a spreadsheet would calculate get an apostrophe. Numbers and plain words stay as they are.

# %%
test_eq([csv_cell(v) for v in ("=1+1", "-", "liver", -1, "")], ["'=1+1", "'-", "liver", -1, ""])
