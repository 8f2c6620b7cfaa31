# %% [markdown]
# # Cache
#
# > Arrays read from files, kept by the content of the files.
#
# - skip_showdoc: true

# %%
#| default_exp data.cache

# %% [markdown]
# Even a fast reader should not read the same file twice. Arrays are kept as `.npz` files in the [cache folder](../core/15_cache.ipynb), `~/.cache/ctseg` or
# `CTSEG_CACHE`, never inside the data folder, which may be read-only. The name of such a file is a hash of the **content** read, so an
# edited CSV is another CSV, whatever its name and date.

# %%
#| export
import contextlib
import hashlib
import re
import struct
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ctseg.core.atomic import atomic_path
from ctseg.core.cache import own_cache
from ctseg.core.errors import InputError
from ctseg.core.paths import real_path, refuse_special, unread

# %%
#| hide
import os
import tempfile
from pathlib import Path

import numpy as np
from fastcore.test import test_eq, test_fail


# %% [markdown]
# ## A hash of the content, remembered
#
# Hashing 255 MB still takes a quarter of a second. Git has the same problem with its index and we take its way out: remember the hash
# together with the file's size, inode and times, and trust it while none has changed. The kernel sets the change time, so no edit escapes.

# %%
#| export
@contextlib.contextmanager
def reading(path):
    "A file that cannot be read (a link to nowhere, a folder, a pipe, no permission) is told in one line."
    refuse_special(path)
    try:
        yield
    except OSError as e:
        raise unread(path, e) from None


# %%
#| export
def _stat(
    path: Path,
    folder: Path, # that it is in, without links
) -> tuple:
    "What changes when a file does: path, device, inode, size in bytes, and two times in nanoseconds."
    with reading(path):
        stat = path.stat()
    real = real_path(path) if path.is_symlink() else folder/path.name
    return str(real), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns

def _stats(paths: list[Path]) -> list[tuple]:
    "`_stat` of each file. Where a folder really is, is asked once."
    folders = {folder: real_path(folder) for folder in {path.parent for path in paths}}
    return [_stat(path, folders[path.parent]) for path in paths]


# %% [markdown]
# The size is the fourth entry. A file that is missing is named, and a link is followed:

# %%
names_file = Path("../../data_sample/class_names.json")
stats = _stats([names_file])[0]
print("bytes of the list of classes:", stats[3])
test_fail(lambda: _stats([Path("no such file")]), contains="cannot be read (No such file or directory)")
test_eq(stats[0], str(names_file.resolve()))
with tempfile.TemporaryDirectory() as d:
    link = Path(d)/"link"
    link.symlink_to(names_file.resolve())
    test_eq(_stats([link])[0], stats)


# %%
#| export
def _hash_files(paths, sizes) -> str:
    "A hash of the files' sizes and bytes."
    digest = hashlib.sha256()
    for path, size in zip(paths, sizes):
        digest.update(b"%d:" % size)
        with reading(path), open(path, "rb") as f:
            while chunk := f.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()[:32]


# %% [markdown]
# A file younger than two seconds is not remembered, because its clock may be too coarse to show a second edit.

# %%
#| export
def content_digest(paths: list[Path]) -> str:
    "A hash (32 hex digits) of the content of files, looked up if none has changed since it was computed."
    stats = _stats(paths)
    cache = own_cache("seen")
    if cache is None: return _hash_files(paths, [stat[3] for stat in stats])
    memo = cache/hashlib.sha256(repr(stats).encode()).hexdigest()[:32]
    with contextlib.suppress(OSError, ValueError, InputError):
        refuse_special(memo, 32)
        remembered = memo.read_text()
        if re.fullmatch("[0-9a-f]{32}", remembered):
            return remembered
    digest = _hash_files(paths, [stat[3] for stat in stats])
    newest = max(max(stat[4:]) for stat in stats)
    if time.time_ns() - newest > 2e9:
        with contextlib.suppress(OSError, InputError):
            refuse_special(memo)
            with atomic_path(memo) as tmp: tmp.write_text(digest)
    return digest


# %% [markdown]
# Two files of the same content have the same digest, whatever they are called.

# %%
with tempfile.TemporaryDirectory() as d:
    os.environ["CTSEG_CACHE"] = f"{d}/cache"
    a, b = Path(d)/"a.csv", Path(d)/"b.csv"
    a.write_text("one")
    b.write_text("one")
    test_eq(content_digest([a]), content_digest([b]))
    b.write_text("two")
    assert content_digest([a]) != content_digest([b])


# %% [markdown]
# ## The array itself
#
# A cache must never be in the way. A damaged entry is made again, and where the cache cannot be written there is a warning, not an error.
#
# A file of a megabyte may unpack to a terabyte of zeros. What the arrays in it claim to be is read first.

# %%
#| export
def array_header(f) -> tuple[tuple[int, ...], np.dtype]:
    "Shape and type that the open file of an array claims; fails if it is none."
    newer = np.lib.format.read_magic(f) != (1, 0)
    read = np.lib.format.read_array_header_2_0 if newer else np.lib.format.read_array_header_1_0
    shape, _, dtype = read(f)
    return shape, dtype

def array_shapes(
    file: Path, # `.npz`
    packed: bool = True, # may arrays be compressed?
) -> dict[str, tuple[int, ...]]:
    "What the headers in a file of arrays say of their shapes, without reading the arrays; fails if it is damaged."
    shapes = {}
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            is_packed = entry.compress_type != zipfile.ZIP_STORED
            if is_packed and not packed: raise ValueError("compressed")
            with archive.open(entry) as f:
                shapes[entry.filename.removesuffix(".npy")], _ = array_header(f)
    return shapes


# %%
with tempfile.TemporaryDirectory() as d:
    np.savez_compressed(f"{d}/a.npz", labels=np.zeros((100, 64, 64), np.uint8), names=np.array(["a", "b"]))
    print(array_shapes(Path(d)/"a.npz"))
    test_fail(lambda: array_shapes(Path(d)/"a.npz", packed=False))


# %%
#| export
def _kept(file: Path, fits: Callable[[np.ndarray], bool]) -> np.ndarray | None:
    "The array in a file of the cache; None where there is none, or it is damaged, or of another kind than `fits` expects."
    with contextlib.suppress(Exception):  # each way of being damaged has its own
        refuse_special(file)
        array_shapes(file, packed=False)
        with np.load(file) as kept:  # an archive has a checksum for each array, and it is compared
            array = kept["array"]
        if fits(array): return array
    return None


# %%
#| export
def cached_array(
    kind: str, # what the array is, with the version of its reader: "masks1"
    paths: list[Path], # the files it is read from
    make: Callable[[], np.ndarray], # reads it
    on: bool = True, # `False`: always read
    fits: Callable[[np.ndarray], bool] = lambda array: True, # whether what was kept can be what `make` gives
) -> np.ndarray:
    "`make()`, kept on disk by the content of the files it reads."
    cache = own_cache() if on else None
    if cache is None:
        return make()
    file = cache/f"{kind}-{content_digest(paths)}.npz"
    array = _kept(file, fits)
    if array is not None:
        return array
    array = make()
    try:
        refuse_special(file)
        with atomic_path(file) as tmp:
            np.savez(tmp, array=array)
    except (OSError, InputError, struct.error) as e:  # the last: what lies there is no file
        warnings.warn(f"reading will not be faster next time: {e}")
    return array


# %%
with tempfile.TemporaryDirectory() as d:
    os.environ["CTSEG_CACHE"] = f"{d}/cache"
    path = Path(d)/"numbers.txt"
    path.write_text("1 2 3")
    reads = []

    def read():
        reads.append(path.name)
        return np.array(path.read_text().split(), int)
    for _ in range(2):
        test_eq(cached_array("demo1", [path], read), [1, 2, 3])
    test_eq(len(reads), 1)
    path.write_text("4 5 6")
    test_eq(cached_array("demo1", [path], read), [4, 5, 6])
    print(
        "read", len(reads), "times;", *sorted(p.name[:12] + "….npz" for p in Path(f"{d}/cache").glob("*.npz"))
    )
