# %% [markdown]
# # Data
#
# > From a challenge folder to arrays that remember what was never looked at: read, check, cache, write, split, sample.
#
# - skip_showdoc: true

# %%
#| default_exp data

# %% [markdown]
# This is the notebook the rest of `ctseg` stands on. It turns a folder of PNG files and one very wide CSV into arrays, tells mistakes in
# one line, splits without leaking, and feeds batches. But first it settles what a **zero** means, because everything
# else in this project depends on the answer.

# %%
#| export
import contextlib, csv as csvlib, gzip, hashlib, io, math, os, re, time, warnings, zlib
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from skimage.io import imread, imsave

from ctseg.anatomy import RAIDIUM54, ClassMap
from ctseg.files import InputError, atomic_path, did_you_mean, read_json, write_json

# %%
#| hide
import tempfile

import matplotlib.pyplot as plt
import pandas as pd
from fastcore.test import test_close, test_eq, test_fail
from matplotlib.colors import ListedColormap
from skimage.draw import ellipse

# %% [markdown]
# ## Three states, not two
#
# Outlining 54 organs on thousands of slices is more than any expert will do. So each outlines *some* of them, and the mask says 0
# elsewhere. Take a toy slice with four organs, and two annotators. One was asked for liver and spleen, the other for the kidneys and the
# spleen.

# %%
toy_classes = ClassMap.from_names(["liver", "spleen", "kidney_left", "kidney_right"])

def toy_slice(seed, size=64, spleen=True):
    "A body of ellipses: (image, full truth), both uint8 [size,size]."
    rng = np.random.default_rng(seed)
    image, truth = np.full((size, size), 12.), np.zeros((size, size), np.uint8)
    def organ(y, x, ry, rx, grey, id=None):
        move = rng.normal(0, .012, 2)
        rr, cc = ellipse(*(size*(np.array([y, x]) + move)), size*ry*rng.uniform(.9, 1.1), size*rx*rng.uniform(.9, 1.1), shape=truth.shape)
        image[rr, cc] = grey
        if id is not None: truth[rr, cc] = id
    organ(.5, .5, .38, .42, 95)
    organ(.40, .30, .22, .17, 140, 1)
    if spleen: organ(.42, .76, .11, .08, 150, 2)
    organ(.62, .68, .08, .055, 175, 3)
    organ(.64, .35, .08, .055, 175, 4)
    organ(.74, .5, .07, .07, 225)
    return (image + rng.normal(0, 7, image.shape)).clip(0, 255).astype(np.uint8), truth

image, truth = toy_slice(1)
asked = [("liver", "spleen"), ("spleen", "kidney_left", "kidney_right")]
stored = [np.where(np.isin(truth, [toy_classes.id(n) for n in names]), truth, 0) for names in asked]

# %%
fig, axes = plt.subplots(1, 4, figsize=(11, 2.9), layout="constrained")
titles = ["the slice", "what is in it", "stored: asked for\nliver, spleen", "stored: asked for\nspleen, kidneys"]
for ax, m, title in zip(axes, [None, truth, *stored], titles):
    ax.imshow(image, cmap="gray", vmin=0, vmax=255)
    if m is not None: ax.imshow(np.dstack([toy_classes.colourise(m), (m > 0)*170]).astype(np.uint8))
    ax.set_title(title, fontsize=10); ax.axis("off")
for id in range(1, 5):
    y, x = np.argwhere(truth == id).mean(0)
    axes[1].text(x, y, toy_classes.name(id), color="w", ha="center", va="center", fontsize=7)

# %% [markdown]
# Both files hold a 0 where the slice plainly shows an organ. A zero is *not* "background"; it is "background, **or a structure nobody was
# asked about**". Which of the two can be told only with the list of what was asked, `annotated_labels.json`. With it, each cell (image,
# class) is in one of three states:
#
# | class was examined | pixels of it | state | what a loss may conclude |
# |---|---|---|---|
# | yes | some | **present** | these pixels are it, all others are not |
# | yes | none | **absent** | no pixel of the image is it: a certain, valuable negative |
# | no | (stored as 0) | **unknown** | nothing at all |
#
# In the challenge 4.4 % of the cells are present, 15.6 % absent and 80 % unknown. Even on the annotated slices half of the cells are unknown. Reading them as background teaches a network that
# what nobody looked for is not there, and it believes it: one team of the challenge saw a network trained that way stop at a Dice of
# 0.15, and the same network with a loss that leaves the unknown out reach 0.45. So the third state travels with the data from here to the
# loss, as a boolean array `known`. The *present* array then follows from the masks.

# %%
spleenless, spleenless_truth = toy_slice(2, spleen=False)
cells = np.array([[m is not None and toy_classes.name(c) in asked_names for c in range(1, 5)] for m, asked_names in
                  zip([*stored, spleenless_truth, None], [*asked, asked[1], ()])])
pixels = np.array([[(m == c).any() for c in range(1, 5)] for m in [*stored, np.where(spleenless_truth > 1, spleenless_truth, 0), 0*truth]])
state = np.where(cells, np.where(pixels, 2, 1), 0)

fig, ax = plt.subplots(figsize=(7, 2.5), layout="constrained")
ax.imshow(state, cmap=ListedColormap(["#e8e8e8", "#7aa6d8", "#2f9e5b"]), vmin=0, vmax=2, aspect="auto")
for i, j in np.ndindex(state.shape): ax.text(j, i, ["unknown", "absent", "present"][state[i, j]], ha="center", va="center", fontsize=9)
ax.set_xticks(range(4), toy_classes.names)
ax.set_yticks(range(4), ["asked: liver, spleen", "asked: spleen, kidneys", "the same, but the\nspleen was taken out", "never annotated"])
ax.set_title("state of each (image, class) cell", fontsize=10);


# %% [markdown]
# Note the third row: *absent* is knowledge. An image whose mask is empty may still carry a dozen certain absences, so it must not be
# thrown away. Such images exist: in the challenge 41 of the 800 annotated ones.
#
# ## SliceSet: the arrays
#
# Everything in `ctseg` passes slices around as one `SliceSet`. Images and masks stay 8-bit (a factor of 4 to 8 in memory), `known` is the
# third state, and `groups` says which slices are related and must not be torn apart by a split. It is frozen, and it checks itself: a set
# that breaks the rule *a labelled pixel's class is known* cannot be made.

# %%
#| export
@dataclass(frozen=True)
class SliceSet:
    "N slices of one size with what is known about them. Indexing with an int array, bool mask or slice gives a `SliceSet`."
    images: np.ndarray # uint8 [N,H,W]
    masks: np.ndarray # uint8 [N,H,W]; 0 = background or unknown
    known: np.ndarray # bool [N,C]: class c+1 was examined on image n
    names: tuple[str, ...] # N file names
    groups: np.ndarray # int64 [N]: slices of one group (patient, near-duplicates) belong together
    classes: ClassMap # the C classes

    def __post_init__(self):
        object.__setattr__(self, "names", tuple(self.names))
        n, c = len(self.images), len(self.classes)
        pixels = (np.uint8, np.shape(self.images))
        want = dict(images=pixels, masks=pixels, known=(np.bool_, (n, c)), groups=(np.int64, (n,)))
        for name, (dtype, shape) in want.items():
            a = getattr(self, name)
            if not isinstance(a, np.ndarray) or a.dtype != dtype or a.shape != shape:
                is_ = f"{a.dtype} {list(a.shape)}" if isinstance(a, np.ndarray) else type(a).__name__
                raise InputError(f"SliceSet.{name} is {is_}; expected {np.dtype(dtype)} {list(shape)}")
        if self.images.ndim != 3: raise InputError(f"SliceSet.images has {self.images.ndim} dimensions; expected 3: [N,H,W]")
        if len(self.names) != n: raise InputError(f"SliceSet.names has {len(self.names)} names; expected one for each of {n} images")
        _check_masks(self)

    def __len__(self): return len(self.images)
    def __repr__(self):
        h, w = self.images.shape[1:]
        groups = len(np.unique(self.groups))
        return f"SliceSet({len(self)} slices {h}x{w}, {self.labelled.sum()} labelled, {len(self.classes)} classes, {groups} groups)"

    @property
    def labelled(self) -> np.ndarray: return self.known.any(1)  # bool [N]
    @cached_property
    def present(self) -> np.ndarray: return present_classes(self.masks, len(self.classes))  # bool [N,C]

    def __getitem__(self, idx):
        idx = np.arange(len(self))[idx].reshape(-1)
        arrays = {k: getattr(self, k)[idx] for k in ("images", "masks", "known", "groups")}
        return replace(self, **arrays, names=[self.names[i] for i in idx])
    def concat(self, other): return _concat(self, other)  # the slices of both
    def fingerprint(self) -> str: return _fingerprint(self)  # a hash of everything in it


# %% [markdown]
# Which classes have pixels is asked often, so it is computed once, and fast: masks consist of long runs of one value, and every class that
# occurs starts a run somewhere, so only the pixels that differ from the one before are looked at (ten times faster than looking at all).

# %%
#| export
def present_classes(
    masks: np.ndarray, # uint8 [N,H,W]
    C: int, # number of classes
) -> np.ndarray: # bool [N,C]
    "Which classes have at least one pixel on each image. Values above `C` are not looked at."
    seen = np.zeros((len(masks), 256), bool)
    for row, mask in zip(seen, np.reshape(masks, (len(masks), int(np.prod(masks.shape[1:]))))):
        row[mask[:1]] = row[mask[1:][mask[1:] != mask[:-1]]] = True
    return seen[:, 1:C + 1]

def _check_masks(s: SliceSet):
    "Raise an `InputError` if a mask holds an id above C or a pixel of a class that is not known on its image."
    if len(s) and s.masks.size and s.masks.max() > len(s.classes):
        n, y, x = np.argwhere(s.masks > len(s.classes))[0]
        raise InputError(f"mask of {s.names[n]} holds {s.masks[n, y, x]} at ({y}, {x}); there are {len(s.classes)} classes")
    if (bad := s.present & ~s.known).any():
        n, c = np.argwhere(bad)[0]
        raise InputError(f"mask of {s.names[n]} has pixels of class {c + 1} ({s.classes.name(c + 1)}), which known says was not examined")

def still_known(
    known: np.ndarray, # bool [N,C]
    drawn: np.ndarray, # bool [N,C]: what the slices showed
    masks: np.ndarray, # uint8 [N,H,W]: what they show now, smaller, or with one structure over another
) -> np.ndarray: # bool [N,C]
    "`known`, without the structures that were drawn and of which no pixel is left: they are not absent."
    return known & ~(drawn & ~present_classes(masks, known.shape[1]))


# %%
def toy_set(n=6, size=64, seed=0):
    "Toy slices: every third unlabelled, two or three of the classes examined on the others."
    rng = np.random.default_rng(seed)
    images, masks = map(np.stack, zip(*[toy_slice(seed*1000 + i, size, spleen=rng.random() < .6) for i in range(n)]))
    known = np.array([rng.permutation([True, True, i % 2 == 0, False]) & (i % 3 < 2) for i in range(n)])
    masks *= np.concatenate([np.ones((n, 1), bool), known], 1)[np.arange(n)[:, None, None], masks]
    return SliceSet(images, masks, known, [f"{i}.png" for i in range(n)], np.arange(n)//2, toy_classes)

toy = toy_set()
toy

# %%
test_eq(toy.labelled, [True, True, False]*2)
test_eq(toy[[3, 0]].names, ("3.png", "0.png"))
test_eq(len(toy[toy.labelled]), 4)
test_eq(len(toy[2]), 1)
assert not (toy.present & ~toy.known).any()
for change in (dict(masks=toy.masks.astype(int)), dict(known=~toy.known), dict(masks=toy.masks + np.uint8(4)), dict(names=toy.names[:3])):
    try: replace(toy, **change)
    except InputError as e: print(e)


# %% [markdown]
# Two sets can be joined, and a set has a fingerprint: a hash of all it holds. A run writes it down, so that later one can tell whether two
# results came from the same data.

# %%
#| export
def _concat(a: SliceSet, b: SliceSet) -> SliceSet:
    "The slices of `a`, then those of `b`. Group numbers are kept: equal numbers mean the same group."
    if a.classes != b.classes: raise InputError(f"cannot join sets with other classes: {a.classes} and {b.classes}")
    if a.images.shape[1:] != b.images.shape[1:]: raise InputError(f"cannot join images of {_size(a.images)} and {_size(b.images)} pixels")
    return SliceSet(*(np.concatenate([getattr(a, k), getattr(b, k)]) for k in ("images", "masks", "known")), a.names + b.names,
                    np.concatenate([a.groups, b.groups]), a.classes)

def _fingerprint(s: SliceSet) -> str:
    "A hash (hex) of everything in the set: pixels, masks, what is known, names, groups and classes."
    h = hashlib.sha256(repr((s.images.shape, s.names, s.classes.names, s.classes.pairs)).encode())
    for a in (s.images, s.masks, s.known, s.groups): h.update(np.ascontiguousarray(a))
    return h.hexdigest()[:32]


# %%
both = toy[:2].concat(toy[2:])
test_eq(both.fingerprint(), toy.fingerprint())
assert toy[[1, 0]].fingerprint() != toy[[0, 1]].fingerprint()


# %% [markdown]
# ## Masks: one very wide CSV
#
# The challenge stores all masks of a split in one text table that is *transposed*: a row for each pixel (`Pixel 0` … `Pixel 65535`, row by
# row through the image), a column for each image. With 2000 columns that is 255 MB. The obvious `pandas.read_csv(index_col=0).T` needs ten
# seconds and 2 GB, because every number takes eight bytes and the whole table is held twice.
#
# The table is so regular that a reader needs no general CSV machinery. Read some lines at a time and look at their bytes as an array: find
# all separators at once. The byte before a separator is the last digit of a number; the byte before that is its tens, unless it is a
# separator itself. So *for every byte of the block, the number that would end there* is a sum of two shifted arrays, and the numbers are
# picked from it at the separators. A block goes, turned, into the final `uint8` array. Nothing is ever held twice, and it is several times
# faster than both pandas and Arrow's CSV reader (measured in [benchmarks/data_reading](benchmarks/data_reading.ipynb)).
#
# Being fast must not mean being lax. Every line must begin with its own label and have its own number of values; apart from the labels and
# separators there may be nothing but digits; no value may be empty or above 255.

# %%
#| export
def _parse_rows(
    raw: bytes, # whole lines, each "Pixel k,3,0,…\n"
    first: int, # k of the first line
    n: int, # number of values in a line
) -> np.ndarray|None: # uint8 [lines, n]; None if anything at all is not as it should be
    "Read the lines of a mask table by array operations on their bytes."
    if b'"' in raw: raw = raw.replace(b'"', b"")  # some writers quote the labels
    lines = raw.split(b"\n")[:-1]
    if not all(line.startswith(b"Pixel %d," % k) for k, line in enumerate(lines, first)): return None
    a, k = np.frombuffer(raw, np.uint8), len(lines)
    digit, stop = a - np.uint8(ord("0")), (a == ord(",")) | (a == ord("\n"))
    at = np.flatnonzero(stop)
    if len(at) != k*(n + 1) or (a[at[n::n + 1]] != ord("\n")).any(): return None  # ragged
    if np.count_nonzero(digit > 9) != len(at) + k*len("Pixel ") or (stop[1:] & stop[:-1]).any(): return None  # no digit, or empty
    value = np.zeros_like(a)
    value[2:] = digit[1:-1] + digit[:-2]*~stop[:-2]*np.uint8(10)
    value = value.take(at).reshape(k, n + 1)[:, 1:]
    long = stop[3:] & ~(stop[2:-1] | stop[1:-2] | stop[:-3])  # three bytes or more, as every label has
    return value if np.count_nonzero(long) == k else _add_hundreds(value, digit, at.reshape(k, n + 1))


# %%
#| export
def _add_hundreds(value, digit, at):
    "The third digits, which are rare; `None` where a number is above 255."
    end, width = at[:, 1:], np.diff(at, axis=1) - 1
    big = width >= 3
    total = value[big] + 100*digit[end[big] - 3].astype(int)
    if width.max() > 3 or total.max() > 255: return None
    value[big] = total
    return value


# %%
test_eq(_parse_rows(b"Pixel 7,0,12\nPixel 8,255,3\n", 7, 2), [[0, 12], [255, 3]])
test_eq(_parse_rows(b"Pixel 99,7\nPixel 100,54\n", 99, 1), [[7], [54]])
for bad in ("7,0", "7,0,1,2", "8,0,1", "7,0,-1", "7,0,256", "7,0,1.0", "7,0,", "7,0,a"):
    test_eq(_parse_rows(f"Pixel {bad}\n".encode(), 7, 2), None)


# %% [markdown]
# When the fast way meets anything unexpected it returns nothing, and those lines are read again slowly, to find the first defect and tell
# it exactly: the file, the row, the column, the value, and what to do.

# %%
#| export
def _explain_rows(path, raw: bytes, first: int, columns) -> InputError:
    "The first defect among lines that `_parse_rows` refused."
    again = "write the file again" if path.name.endswith(".gz") else "the file may be cut off or edited: write it again"
    for k, line in enumerate(raw.decode("utf-8", "replace").splitlines(), first):
        label, *values = line.split(",")
        if label.strip('"') != f"Pixel {k}":
            return InputError(f"{path}, line {k + 2}: row {label[:20]!r}, expected 'Pixel {k}'; rows must be Pixel 0, 1, 2, … in order")
        odd = [(n, v) for n, v in zip(columns, values) if not re.fullmatch(r"\d{1,3}", v, re.ASCII) or int(v) > 255]
        if odd and len(values) >= len(columns):
            return InputError(f"{path}, row Pixel {k}, column {odd[0][0]}: {odd[0][1][:20]!r} is not a whole number from 0 to 255; {again}")
        if len(values) != len(columns):
            return InputError(f"{path}, row Pixel {k}: {len(values)} values, expected {len(columns)}, one for each image; {again}")
    return InputError(f"{path}, near row Pixel {first}: not a table of whole numbers; {again}")


# %% [markdown]
# The file may be plain or gzipped. Its first line holds the names of the images. People do write the table the other way round; that is
# recognised and told.

# %%
#| export
@contextlib.contextmanager
def _open_csv(path):
    "Open a `.csv` or `.csv.gz` for reading bytes; damage of the compression is told in one line."
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as f: yield f
    except FileNotFoundError: raise InputError(f"{path}: no such file") from None
    except IsADirectoryError: raise InputError(f"{path}: is a folder, expected a CSV file") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as e: raise InputError(f"{path}: damaged gzip file ({e}); copy it again") from None
    except OSError as e: raise InputError(f"{path}: cannot be read ({e.strerror})") from None

def _header(path) -> list[str]:
    "The names of the images in the first line of a mask table."
    with _open_csv(path) as f: line = f.readline()
    try: names = next(csvlib.reader([line.decode("utf-8-sig")]), [])[1:]
    except UnicodeDecodeError: raise InputError(f"{path}: not a text file; expected a CSV with a column for each image") from None
    if not names: raise InputError(f"{path}: the first line names no images; expected ',0.png,1.png,…'")
    if names[0].startswith("Pixel"): raise InputError(f"{path}: a row is an image, expected a column; turn the table (pandas: df.T)")
    twice = [n for n, k in Counter(names).items() if k > 1]
    if twice: raise InputError(f"{path}: column {twice[0]} is there twice; each image has one column")
    return names


# %% [markdown]
# Now the reader proper. The result is allocated once, in its final shape; each block of lines is parsed and put in place.

# %%
#| export
def _blocks(f, size: int = 1 << 17):  # small: its arrays stay in the processor's cache, and the allocator reuses them
    "Cut what is left of a file into blocks of whole lines, each ended by a newline alone; empty lines at the end are dropped."
    rest = b""
    while chunk := f.read(size):
        block = rest + chunk
        cut = block.rfind(b"\n") + 1
        lines, rest = block[:cut], block[cut:]
        if b"\r" in lines: lines = lines.replace(b"\r\n", b"\n")
        if lines := lines.rstrip(b"\n"): yield lines + b"\n"
    if rest := rest.rstrip(b"\r"): yield rest + b"\n"


# %%
#| export
def _read_table(path, columns, rows: int|None) -> np.ndarray:
    "Read a mask table: uint8 [images, rows]. `rows=None`: as many as there are."
    if rows is None:
        with _open_csv(path) as f: rows = sum(b.count(b"\n") for b in _blocks(f)) - 1
    out, k = np.empty((len(columns), rows), np.uint8), 0
    with _open_csv(path) as f:
        f.readline()
        for raw in _blocks(f):
            block = _parse_rows(raw, k, len(columns))
            if block is None: raise _explain_rows(path, raw, k, columns)
            if k + len(block) > rows: raise InputError(f"{path}: more than {rows} rows, the pixels of an image; is it for other images?")
            out[:, k:k + len(block)] = block.T
            k += len(block)
    if k < rows: raise InputError(f"{path}: {k} rows, expected {rows}, the number of pixels of an image; the file may be cut off")
    return out


# %% [markdown]
# ## A cache that follows the content
#
# Even a fast reader should not read the same file twice. Arrays are kept as `.npy` files under `~/.cache/ctseg` (or the folder named by
# `CTSEG_CACHE`), never inside the data folder, which may be read-only. The name of the file is a hash of the **content** read, so an
# edited CSV is another CSV, whatever its name and date.
#
# Hashing 255 MB still takes a quarter of a second. Git has the same problem with its index and we take its way out: remember the hash
# together with the file's size, inode and times, and trust it while none has changed. The kernel sets the change time, so no edit escapes;
# a file younger than two seconds is not remembered, because its clock may be too coarse to show a second edit.
#
# A cache must never be in the way: a damaged entry is made again, and where the cache cannot be written there is a warning, not an error.

# %%
#| export
def cache_dir() -> Path:
    "Where arrays read before are kept: the environment's `CTSEG_CACHE`, else `~/.cache/ctseg`. Safe to delete."
    return Path(os.environ.get("CTSEG_CACHE") or Path.home()/".cache"/"ctseg")

@contextlib.contextmanager
def _reading(path):
    "A file that cannot be read (a link to nowhere, a folder, no permission) is told in one line."
    try: yield
    except OSError as e: raise InputError(f"{path}: cannot be read ({e.strerror})") from None

def _stat(path: Path) -> tuple:
    "What changes when a file does."
    with _reading(path): s = path.stat()
    return str(path.resolve()), s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns

def _digest(paths) -> str:
    "A hash of the content of the files, looked up if none has changed since it was computed."
    stats = [_stat(p) for p in paths]
    memo = cache_dir()/"seen"/hashlib.sha256(repr(stats).encode()).hexdigest()[:32]
    with contextlib.suppress(OSError, ValueError):
        if len(known := memo.read_text()) == 32: return known
    digest = hashlib.sha256()
    for p, s in zip(paths, stats):
        digest.update(b"%d:" % s[3])
        with _reading(p), open(p, "rb") as f:
            while chunk := f.read(1 << 20): digest.update(chunk)
    digest = digest.hexdigest()[:32]
    if time.time_ns() - max(max(s[4:]) for s in stats) > 2e9:
        with contextlib.suppress(OSError, InputError), atomic_path(memo) as tmp: tmp.write_text(digest)
    return digest


# %%
#| export
def _cached(kind: str, paths, make, on: bool = True) -> np.ndarray:
    "`make()`, kept on disk by the content of the files it reads."
    if not on: return make()
    file = cache_dir()/f"{kind}-{_digest(paths)}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError): return np.load(file)  # absent or damaged: make it
    array = make()
    try:
        with atomic_path(file) as tmp: np.save(tmp, array)
    except (OSError, InputError) as e: warnings.warn(f"reading will not be faster next time: {e}")
    return array


# %% [markdown]
# `read_masks` puts it together. What the caller expects (the names, the size, the number of classes) is checked after the cache, so a
# cached table is held to the same standard as a fresh one.

# %%
#| export
def _same_names(found, expected, where, among=None, folder=None):
    "Raise an `InputError` unless the columns are the expected ones, in order; it tells missing from extra from misplaced, and from an image in `folder` that is no `.png`."
    if list(found) == list(expected): return
    extra = [n for n in found if n not in set(among or expected)]
    lost = [n for n in expected if n not in set(found)]
    more = lambda names: f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    other = next((p for p in Path(folder).iterdir() if p.stem == Path(extra[0]).stem), None) if extra and folder and extra[0].endswith(".png") else None
    if other: tell = f"{other.name} is there, expected {extra[0]}; {'rename' if other.suffix.lower() == '.png' else 'convert'} it"
    elif extra: tell = f"column {extra[0]}{more(extra)} belongs to no image; remove it, or add the image"
    elif lost: tell = f"no column for {lost[0]}{more(lost)}; add it"
    else:
        i = next(i for i, (a, b) in enumerate(zip(found, expected)) if a != b)
        tell = f"column {i + 1} is {found[i]}, expected {expected[i]}; put the columns into numeric order"
    raise InputError(f"{where}: {tell} (expected are {len(expected)} columns, {expected[0]} … {expected[-1]})")

def _pixels(path, count: int, size) -> tuple[int, int]:
    "The height and width of masks of `count` pixels."
    h, w = (1, count) if size == (1, -1) else size or (math.isqrt(count),)*2
    if h*w == count and count: return h, w
    if size: raise InputError(f"{path}: {count} rows, expected {h*w} for images of {h}x{w} pixels")
    raise InputError(f"{path}: {count} rows are no square image; give size=(height, width), or the file is cut off")


# %%
#| export
def read_masks(
    csv, # a `.csv` or `.csv.gz` in the challenge's form
    names=None, # the image names it must have, in order; `None`: take them from the file
    size: tuple[int, int]|None = None, # height and width; `None`: a square; (1, -1): all pixels in one row
    classes: ClassMap|int|None = None, # no value may be above this many classes; `None`: any
    cache: bool = True, # keep the array, by content
) -> tuple[list[str], np.ndarray]: # names and masks uint8 [N,H,W]
    "Read a table of masks (rows `Pixel k`, row by row through the image; a column an image). `InputError` for anything unexpected."
    path = Path(csv)
    columns = _header(path)
    if names is not None: _same_names(columns, names, path)
    table = _cached("masks1", [path], lambda: _read_table(path, columns, size[0]*size[1] if size and size[1] > 0 else None), cache)
    h, w = _pixels(path, table.shape[1], size)
    C = classes if isinstance(classes, int) else 255 if classes is None else len(classes)
    if table.max() > C:
        n, k = np.argwhere(table > C)[0]
        raise InputError(f"{path}, row Pixel {k}, column {columns[n]}: value {table[n, k]}, but there are {C} classes (0…{C})")
    return columns, table.reshape(-1, h, w)


# %% [markdown]
# ### Writing
#
# The same trick backwards: a table of the 256 possible tokens, padded with zero bytes; look up the tokens of some rows, drop the padding,
# write. The result is byte for byte what pandas' `to_csv` writes, which is what the challenge's site expects.

# %%
#| export
_TOKENS = np.array([f"{v}," for v in range(256)], "S4").view(np.uint8).reshape(256, 4)
_LAST = np.array([f"{v}\n" for v in range(256)], "S4").view(np.uint8).reshape(256, 4)

def write_masks(
    masks: np.ndarray, # uint8 [N,H,W]
    names, # N image names
    path, # `.csv` or `.csv.gz`
):
    "Write masks as the challenge does: rows `Pixel 0` …, a column for each image. Whole or not at all."
    masks, path = np.asarray(masks), Path(path)
    if masks.dtype != np.uint8 or masks.ndim != 3: raise InputError(f"masks are {masks.dtype} {list(masks.shape)}; expected uint8 [N,H,W]")
    if len(names) != len(masks) or not len(names): raise InputError(f"{len(names)} names for {len(masks)} masks; expected one each")
    table = masks.reshape(len(masks), -1)
    with atomic_path(path) as tmp, open(tmp, "wb") as raw, contextlib.ExitStack() as stack:
        # no file name and no time in the gzip header: the same masks give the same bytes
        f = stack.enter_context(gzip.GzipFile("", "wb", 6, raw, mtime=0)) if path.suffix == ".gz" else raw
        head = io.StringIO()
        csvlib.writer(head, lineterminator="\n").writerow(["", *names])
        f.write(head.getvalue().encode())
        rows = max(1, min(512, 2**16//len(names)))  # at a time: the memory needed does not grow with the number of images
        for k in range(0, table.shape[1], rows):
            block = table[:, k:k + rows].T
            labels = np.array([f"Pixel {i}," for i in range(k, k + len(block))], "S20").view(np.uint8).reshape(-1, 20)
            text = np.concatenate([labels, _TOKENS[block[:, :-1]].reshape(len(block), -1), _LAST[block[:, -1]]], 1)
            f.write(text[text != 0])


# %%
def frame(masks, names): # what a participant would write with pandas
    flat = masks.reshape(len(masks), -1)
    return pd.DataFrame(flat.T, index=[f"Pixel {k}" for k in range(flat.shape[1])], columns=names)

with tempfile.TemporaryDirectory() as d:
    os.environ["CTSEG_CACHE"] = f"{d}/cache"
    d = Path(d)
    for end in (".csv", ".csv.gz"):
        write_masks(toy.masks, toy.names, d/f"y{end}")
        for _ in range(2):  # the second time from the cache
            names, masks = read_masks(d/f"y{end}", toy.names, classes=toy.classes)
            test_eq(names, list(toy.names))
            test_eq(masks, toy.masks)
    frame(toy.masks, toy.names).to_csv(d/"pandas.csv")
    test_eq((d/"pandas.csv").read_bytes(), (d/"y.csv").read_bytes())
    test_eq(len(list((d/"cache").glob("*.npy"))), 2)
    print("\n".join(line[:48] for line in (d/"y.csv").read_text().splitlines()[:3]))

    text = (d/"y.csv").read_text()
    edits = [("Pixel 5,0", "Pixel 5,0.5"), ("Pixel 9,0", "Pixel 9,77"), ("Pixel 40,0,", "Pixel 40,"), ("Pixel 40,", "Pixel 41,"),
             (",2.png", ",7.png"), (",2.png,3.png", ",3.png,2.png")]
    for bad in (text[:-9], *(text.replace(*edit) for edit in edits)):
        (d/"bad.csv").write_text(bad)
        try: read_masks(d/"bad.csv", toy.names, (64, 64), toy.classes)
        except InputError as e: print("-", str(e).replace(str(d), "…"))
        else: assert False, "accepted"


# %% [markdown]
# ## Images: PNG files in numeric order
#
# `10.png` comes after `2.png`. Alphabetical order would put it before, and every image would silently get the mask of another; so numbers
# inside names are compared as numbers.

# %%
#| export
def natural_key(name: str):
    "A sorting key that compares the numbers in names as numbers: 2.png before 10.png."
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name)] + [(2, 0, name)]


# %%
test_eq(sorted("10.png 2.png a10.png a9.png 01.png 1.png ².png".split(), key=natural_key), "01.png 1.png 2.png 10.png a9.png a10.png ².png".split())


# %% [markdown]
# An image is a grayscale PNG of 8 bits. Colour is accepted only if it is grey in disguise. A 16-bit image is refused, not squeezed: how to
# map Hounsfield units to 256 greys (the *window*) is a decision, and not one for a file reader.

# %%
#| export
def _read_png(path: Path) -> np.ndarray:
    "One image, uint8 [H,W]."
    try: image = imread(path)
    except Exception: raise InputError(f"{path}: not a readable image; it is damaged or no PNG, copy it again") from None
    if image.dtype == bool: raise InputError(f"{path}: a 1-bit image, black and white, expected 8 bits; write the grey values")
    if image.dtype != np.uint8: raise InputError(f"{path}: {image.dtype.itemsize*8}-bit image, expected 8 bits; window it to 0…255 first")
    if image.ndim == 3:
        if image.shape[-1] in (2, 4) and (image[..., -1] == 255).all(): image = image[..., :-1]  # an opaque alpha channel says nothing
        if image.shape[-1] not in (1, 3) or (image != image[..., :1]).any():
            raise InputError(f"{path}: a colour image whose channels differ, expected grayscale; convert it to 8-bit grey")
        image = image[..., 0]
    if image.ndim != 2: raise InputError(f"{path}: an image of {image.ndim} dimensions, expected one 2D image")
    return np.ascontiguousarray(image)


# %%
#| export
def image_paths(
    folder, # a folder of PNG files
) -> list[Path]: # in numeric order
    "The PNG files of a folder; `InputError` where there are none."
    folder = Path(folder)
    if not folder.is_dir(): raise InputError(f"{folder}: no such folder; expected a folder of PNG images")
    paths = [p for p in folder.iterdir() if p.suffix.lower() == ".png" and not p.name.startswith(".")]
    if not paths:
        inner = next((p for p in folder.iterdir() if p.is_dir() and any(p.glob("*.png"))), None)
        todo = f"move those in {inner.name}/ up" if inner else "put the slices there, 0.png, 1.png, …"
        raise InputError(f"{folder}: no PNG images in it; {todo}")
    return sorted(paths, key=lambda p: natural_key(p.name))

def read_images(
    folder, # a folder of PNG files
    cache: bool = True, # keep the array, by content
) -> tuple[list[str], np.ndarray]: # names in numeric order, images uint8 [N,H,W]
    "Read all PNG files of a folder, all of one size."
    paths = image_paths(folder)
    return [p.name for p in paths], _cached("images1", paths, lambda: read_pngs(paths), cache)


# %%
#| export
def read_pngs(
    paths, # PNG files
    size: tuple[int, int]|None = None, # the height and width they must have; `None`: those of the first
) -> np.ndarray: # uint8 [N,H,W]
    "Read images of one size. (A folder too large for the memory is read by parts of `image_paths`.)"
    first = _read_png(paths[0])
    size, like = (size, "the others") if size else (first.shape, paths[0].name)
    images = np.empty((len(paths), *size), np.uint8)
    for i, p in enumerate(paths):
        image = _read_png(p) if i else first
        if image.shape != tuple(size): raise InputError(f"{p}: {_size(image)} pixels, expected {'x'.join(map(str, size))} like {like}; resize it")
        images[i] = image
    return images

def _size(images) -> str: return "x".join(map(str, images.shape[-2:]))  # as people write it


# %% [markdown]
# ## The challenge folder
#
# A challenge folder holds, for a split called `train` or `test`:
#
# | file | content |
# |---|---|
# | `train-images/`, `test-images/` | the slices, PNG |
# | `y_train.csv`, `y_test.csv` (or `.csv.gz`) | the masks; those of the test are mostly secret |
# | `annotated_labels.json` | a list for each training image: the classes that were examined on it |
# | `class_names.json` | optional: `{"1": "brainstem", …}`; without it the 54 structures of the challenge |
# | `patients.json` | optional: `{"train": [...], "test": [...]}`, the patient of each slice |
#
# Without `annotated_labels.json` nobody can tell absent from unknown. A reader that guessed would be right on somebody's data and ruin
# another's, so the user must say it: `annotated="all"` (every class was examined on every image of the CSV, as in a fully annotated set)
# or `annotated="present"` (only classes with pixels are known: the cautious reading, without certain absences).

# %%
#| export
def _csv_path(folder: Path, split: str) -> Path|None:
    "The mask table of a split, plain or gzipped; `None` if there is none."
    found = [p for p in (folder/f"y_{split}.csv", folder/f"y_{split}.csv.gz") if p.exists()]
    if len(found) == 2: raise InputError(f"{folder}: both {found[0].name} and {found[1].name} exist; remove one of them")
    return found[0] if found else None

def read_classes(folder) -> ClassMap:
    "The classes of a challenge folder: its `class_names.json`, else the 54 of the challenge."
    path = Path(folder)/"class_names.json"
    return ClassMap.from_json(path) if path.exists() else RAIDIUM54


# %%
#| export
def _read_annotated(path: Path, n: int|None, C: int) -> np.ndarray:
    "`annotated_labels.json` as bool [n,C]; `n = None`: as many as there are."
    if not path.exists():
        raise InputError(f"{path}: no such file, so absent cannot be told from unknown; choose annotated='all' (--annotated all: every class was "
                         "examined on every image of the CSV) or annotated='present' (only classes with pixels are known)")
    lists = read_json(path)
    if not isinstance(lists, list): raise InputError(f"{path}: expected a list with a list of class ids for each training image")
    n = len(lists) if n is None else n
    if len(lists) != n: raise InputError(f"{path}: {len(lists)} lists for {n} training images; give each a list, empty if not examined")
    known = np.zeros((n, C), bool)
    for i, ids in enumerate(lists):
        if not isinstance(ids, list): raise InputError(f"{path}, entry {i}: {ids!r} is not a list of class ids")
        for c in ids:
            if type(c) is not int or not 1 <= c <= C: raise InputError(f"{path}, entry {i}: {c!r} is not a class id from 1 to {C}")
            known[i, c - 1] = True
    return known


# %% [markdown]
# With the file, the masks and the lists must agree. A pixel of a class that was supposedly never examined means that one of the two is
# wrong, most likely shifted by some rows, and then everything learnt from them is wrong.

# %%
#| export
def _known(folder: Path, csv: Path, names, masks, labelled: int, classes: ClassMap, annotated: str) -> np.ndarray:
    "What is known on the training images, bool [N,C]; the first `labelled` of them have a column in the CSV."
    n, C = len(names), len(classes)
    if annotated == "json": known = _read_annotated(folder/"annotated_labels.json", n, C)
    elif annotated == "all": known = np.repeat(np.arange(n)[:, None] < labelled, C, axis=1)
    else: return present_classes(masks, C)
    if known[labelled:].any():
        i = labelled + int(np.argmax(known[labelled:].any(1)))
        raise InputError(f"{csv}: no column for {names[i]}, which annotated_labels.json says was examined; add it, or empty entry {i}")
    _check_looked_for(known, masks, names, csv, classes)
    return known

def _check_looked_for(known, masks, names, csv: Path, classes: ClassMap):
    "`InputError` for pixels of a class that nobody looked for."
    if (bad := present_classes(masks, len(classes)) & ~known).any():
        i, c = np.argwhere(bad)[0]
        raise InputError(f"{csv}, column {names[i]}: pixels of class {c + 1} ({classes.name(c + 1)}), not in entry {i} of "
                         "annotated_labels.json; add it there, or check that both files belong to the same images")


# %%
#| export
def _read_groups(folder: Path, split: str, images: np.ndarray) -> np.ndarray:
    "The group of each image, int64 [N]: its patient in `patients.json`, else near-duplicates share one."
    path = folder/"patients.json"
    if not path.exists(): return near_duplicates(images)
    table = read_json(path)
    if not isinstance(table, dict) or not isinstance(table.get(split), list):
        raise InputError(f'{path}: expected {{"{split}": [...]}} with the patient of each image')
    if len(table[split]) != len(images):
        raise InputError(f"{path}: {len(table[split])} patients under {split!r} for {len(images)} images; give one for each image")
    _check_patients(table[split], path)
    if all(type(p) is int and abs(p) < 2**63 for p in table[split]): return np.array(table[split], np.int64)
    return np.unique([str(p) for p in table[split]], return_inverse=True)[1].astype(np.int64)

def _check_patients(ids: list, path):
    "`InputError` for an image whose patient is not told: all such would be taken for one person."
    for i, p in enumerate(ids):
        if type(p) not in (str, int, float) or p == "":
            raise InputError(f"{path}, entry {i}: {p!r} is no patient; give a name or a number, one of its own if the patient is not known")


# %%
#| export
def read_challenge(
    folder, # a challenge folder
    split: str = "train", # train or test
    annotated: str = "json", # json, all or present: where to learn what was examined (train only)
    cache: bool = True, # keep the arrays, by content
) -> SliceSet:
    "Read and check one split of a challenge folder. Images without annotation (or a test without truth) have mask 0 and nothing known."
    folder = Path(folder)
    if split not in (options := ("train", "test")): raise did_you_mean("split", split, options)
    if annotated not in (options := ("json", "all", "present")): raise did_you_mean("value of annotated", annotated, options)
    if not folder.is_dir(): raise InputError(f"{folder}: no such folder; expected one with {split}-images/ and y_{split}.csv")
    if not (folder/f"{split}-images").is_dir():
        what = f"has no {split}-images/" if any(folder.iterdir()) else "is an empty folder"
        raise InputError(f"{folder}: {what}; expected {split}-images/ and y_{split}.csv, as unpacked from the challenge")
    csv, classes = _csv_path(folder, split), read_classes(folder)
    if csv is None and split == "train": raise InputError(f"{folder}: no y_train.csv or y_train.csv.gz; put the table of masks there")
    names, images = read_images(folder/f"{split}-images", cache)
    masks, known = np.zeros_like(images), np.zeros((len(names), len(classes)), bool)
    if csv is not None:
        columns = _header(csv)
        k = len(columns) if split == "train" else len(names)  # training images after the CSV's last one are unlabelled
        _same_names(columns, names[:k], csv, names, folder/f"{split}-images")
        masks[:k] = read_masks(csv, columns, images.shape[1:], classes, cache)[1]
        known = _known(folder, csv, names, masks, k, classes, annotated) if split == "train" else ~known
    return SliceSet(images, masks, known, names, _read_groups(folder, split, images), classes)


# %% [markdown]
# ### Writing a folder
#
# All files of a split are written under temporary names first, and renamed together only when the last one is complete. The order on disk
# is numeric, so a shuffled set comes back sorted.

# %%
#| export
def write_challenge(
    slices: SliceSet,
    folder, # created if needed; the other split in it is kept
    split: str = "train", # train or test
    compress: bool = False, # write `.csv.gz`
):
    "Write a split of a challenge folder, so that `read_challenge` gives the same slices back."
    folder = Path(folder)
    if split not in (options := ("train", "test")): raise did_you_mean("split", split, options)
    order = sorted(range(len(slices)), key=lambda i: natural_key(slices.names[i]))
    s = slices if order == list(range(len(slices))) else slices[order]  # no copy of what is in order
    _check_writable(s, folder, split)
    table, patients = folder/f"y_{split}.csv{'.gz'*compress}", folder/"patients.json"
    groups = read_json(patients) if patients.exists() else {}
    if not isinstance(groups, dict): raise InputError(f'{patients}: expected {{"train": [...], "test": [...]}}; correct it, or choose another folder')
    groups |= {split: s.groups.tolist()}
    new, masked = not folder.exists(), split == "train" or bool(s.labelled.any())  # a test without truth has no table
    try:
        with contextlib.ExitStack() as stack:
            hold = lambda path: stack.enter_context(atomic_path(path))
            (images := hold(folder/f"{split}-images")).mkdir()
            for name, image in zip(s.names, s.images): imsave(images/name, image, check_contrast=False)
            if masked: write_masks(s.masks, s.names, hold(table))
            lists = [(np.flatnonzero(k) + 1).tolist() for k in s.known]
            if split == "train": write_json(lists, hold(folder/"annotated_labels.json"), indent=None)
            s.classes.to_json(hold(folder/"class_names.json"))
            write_json(groups, hold(patients), indent=None)
    except BaseException:
        with contextlib.suppress(OSError):
            if new: folder.rmdir()  # only if it is empty
        raise
    for old in {folder/f"y_{split}.csv", folder/f"y_{split}.csv.gz"} - ({table} if masked else set()): old.unlink(missing_ok=True)


# %% [markdown]
# Some sets do not fit the format: it has no place for a test split that is annotated in part, or for two images of one name.

# %%
#| export
def _check_writable(s: SliceSet, folder: Path, split: str):
    "Raise an `InputError` for a set that the format of the challenge cannot hold."
    if not len(s): raise InputError(f"{folder}: nothing to write, the set has no slices")
    bad = [n for n in s.names if Path(n).name != n or not n.lower().endswith(".png") or n.startswith(".")]
    if bad: raise InputError(f"{folder}: {bad[0]!r} cannot be an image's file name; expected names such as 0.png")
    twice = [n for n, k in Counter(s.names).items() if k > 1]
    if twice: raise InputError(f"{folder}: two slices are called {twice[0]}; rename one")
    if split == "test" and s.labelled.any() and not s.known.all():
        raise InputError(f"{folder}: a test split is annotated fully or not at all; this one is in part")
    if (folder/"class_names.json").exists() and read_classes(folder).names != s.classes.names:  # the file has no place for pairs
        raise InputError(f"{folder}/class_names.json: names other classes than the slices to be written; choose another folder")


# %%
with tempfile.TemporaryDirectory() as d:
    os.environ["CTSEG_CACHE"] = f"{d}/cache"
    data = Path(d)/"data"
    toy12 = toy_set(12)  # 0.png … 11.png: 10.png must not come after 1.png
    write_challenge(toy12, data)
    print(*sorted(p.name for p in data.iterdir()), sep="  ")
    back = read_challenge(data)
    test_eq(back.fingerprint(), toy12.fingerprint())
    shuffled = toy12[np.random.default_rng(0).permutation(12)]
    write_challenge(shuffled, data, compress=True)
    test_eq(read_challenge(data).fingerprint(), toy12.fingerprint())

    (data/"annotated_labels.json").unlink()
    try: read_challenge(data)
    except InputError as e: print(str(e).replace(d, "…"))
    test_eq(read_challenge(data, annotated="all").known.all(), True)
    test_eq(read_challenge(data, annotated="present").known, toy12.present)

# %% [markdown]
# A real folder now, `data_sample`: 400 head-and-neck CT slices of [OpenKBP](18_datasets.ipynb), 160 of them annotated for three or four of
# seven organs. On the left is one annotated slice with its outlines. On the right is *all* that is known about the 400: a column for each
# slice, a row for each class. Most of it is grey.

# %%
sample = read_challenge("../data_sample", cache=False)
sample

# %%
state = np.where(sample.known, np.where(sample.present, 2, 1), 0)
i = sample.present.sum(1).argmax()
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained", width_ratios=[1, 1.9])
left.imshow(sample.images[i], cmap="gray")
left.imshow(np.dstack([sample.classes.colourise(sample.masks[i]), (sample.masks[i] > 0)*150]).astype(np.uint8))
left.set_title(f"{sample.names[i]}: {sample.known[i].sum()} classes examined, {sample.present[i].sum()} found", fontsize=10)
left.axis("off")
right.imshow(state.T, cmap=ListedColormap(["#e8e8e8", "#7aa6d8", "#2f9e5b"]), vmin=0, vmax=2, aspect="auto", interpolation="nearest")
right.set_yticks(range(len(sample.classes)), sample.classes.names)
right.set(xlabel="slice", title="green: present, blue: absent, grey: unknown");


# %% [markdown]
# ## Near-duplicates and folds
#
# Slices of a challenge come shuffled, without patient numbers, but some are neighbours in one body, nearly the same picture. If one is
# trained on and the other validated on, the validation score is a lie. So near-duplicates are found and kept together.
#
# Each slice is shrunk to a 16x16 thumbnail; two slices are near-duplicates if their thumbnails correlate above .98; and what is linked
# through others is one group. *Correlation* means that the mean is removed before taking the cosine: each slice was windowed on its own,
# and correlation does not see brightness and contrast. It also matters for a less obvious reason: grey values are positive, so *all* CT
# slices have a high plain cosine. On 2000 head-and-neck slices of 242 patients, of the pairs above .98 the correlation found 74 % to be of
# one patient and the plain cosine only 52 %. Neither finds all slices of a patient: where the patients are known, `patients.json` should
# say so.
#
# All pairs are compared by one matrix product, a block of rows at a time, so 2500 images take about a second.

# %%
#| export
def near_duplicates(
    images: np.ndarray, # uint8 [N,H,W]
    threshold: float = .98, # correlation of 16x16 thumbnails above which two slices belong together
) -> np.ndarray: # int64 [N]: group numbers, 0 … in order of first appearance
    "Group near-duplicate slices (and what is linked through them)."
    thumbs = [np.zeros((0, 256), np.float32)]
    for i in range(0, len(images), 256):
        thumbs.append(F.adaptive_avg_pool2d(torch.from_numpy(images[i:i + 256])[:, None].float(), 16).flatten(1).numpy())
    v = np.concatenate(thumbs)
    v -= v.mean(1, keepdims=True)
    v /= np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-6)  # an even image has no direction and no duplicate
    links = [np.argwhere(v[i:i + 512] @ v.T > threshold) + [i, 0] for i in range(0, len(v), 512)]
    i, j = np.concatenate(links).T if links else np.zeros((2, 0), int)
    return connected_components(coo_array((np.ones(len(i), bool), (i, j)), (len(v), len(v))), directed=False)[1].astype(np.int64)


# %%
twins = np.concatenate([toy.images, (toy.images[:2]*.8 + 20).astype(np.uint8), toy.images[3:4, ::-1]])  # windowed otherwise; a mirrored one
unlike = np.stack([np.roll(im, 9*i, 1) for i, im in enumerate(toy.images)])
test_eq(near_duplicates(np.concatenate([unlike, (unlike[:2]*.8 + 20).astype(np.uint8)])), [0, 1, 2, 3, 4, 5, 0, 1])
test_eq(near_duplicates(np.zeros((3, 8, 8), np.uint8)), [0, 1, 2])
test_eq(len(near_duplicates(toy.images[:0])), 0)


# %% [markdown]
# Folds for cross-validation have three wishes. A group stays whole (always). Each rare class should be in as many folds as possible: with
# six positive images of a class, a random split easily leaves a fold with none, and its score says nothing about the class. And folds
# should be of about one size.
#
# A greedy scheme does it, *iterative stratification* ([Sechidis et al. 2011](https://doi.org/10.1007/978-3-642-23808-6_10)), here over
# groups instead of images: take the class with the fewest positive images not yet placed; hand out its groups, largest first, each to the
# fold that still lacks most of that class; repeat. What has no class at all is placed last, where there is room.

# %%
#| export
def grouped_folds(
    slices: SliceSet,
    k: int = 5, # number of folds
    seed: int = 0, # breaks ties
) -> np.ndarray: # int64 [N]: the fold, 0…k-1, of each image
    "Split into folds: groups whole, rare classes spread, sizes even."
    group, member = np.unique(slices.groups, return_inverse=True)
    if not 2 <= k <= len(group): raise InputError(f"{k} folds of {len(group)} group{'s'*(len(group) != 1)} of slices: at least 2 folds, and a group (a patient, or near duplicates) for each")
    # a row per group: positives of each class, then labelled images, then images
    counts = np.zeros((len(group), len(slices.classes) + 2))
    np.add.at(counts, member, np.column_stack([slices.present, slices.labelled, np.ones(len(slices))]))
    lack, fold = np.tile(counts.sum(0)/k, (k, 1)), np.full(len(group), -1)
    tie = np.random.default_rng(seed).random((len(group), k))

    def place(g, c):
        best = np.lexsort((tie[g], -lack[:, -1], -lack[:, -2], -lack[:, c]))[0]
        fold[g] = best
        lack[best] -= counts[g]
    while (left := counts[fold < 0].sum(0))[:-1].any():
        c = min(np.flatnonzero(left[:-1]), key=lambda c: (c == len(left) - 2, left[c]))  # the rarest class; labelled but empty images last
        for g in sorted(np.flatnonzero((fold < 0) & (counts[:, c] > 0)), key=lambda g: (-counts[g, c], tie[g, 0])): place(g, c)
    for g in sorted(np.flatnonzero(fold < 0), key=lambda g: (-counts[g, -1], tie[g, 0])): place(g, -1)
    return fold[member]


# %% [markdown]
# How much better than chance? Take 300 slices of 100 patients and 20 classes, some of them in only a handful of patients, and count in how
# many of the five folds each class can be judged at all.

# %%
rng = np.random.default_rng(0)
patient = np.sort(rng.integers(0, 100, 300))
has = rng.random((100, 20)) < np.geomspace(.03, .5, 20)
masks = np.zeros((300, 4, 5), np.uint8)
masks.reshape(300, 20)[:] = np.arange(1, 21)*(has[patient] & (rng.random((300, 20)) < .7))
twenty = ClassMap([f"class {c}" for c in range(20)])
many = SliceSet(masks, masks, np.ones((300, 20), bool), [f"{i}.png" for i in range(300)], patient, twenty)

def spread(fold): return np.array([len(np.unique(fold[many.present[:, c]])) for c in range(20)])  # folds in which each class is found
possible = np.array([min(5, len(np.unique(patient[many.present[:, c]]))) for c in range(20)])
fold = grouped_folds(many)
chance = np.mean([spread(np.random.default_rng(s).integers(0, 5, 100)[patient]) for s in range(50)], 0)
test_eq(spread(fold).max(), 5)
for g in np.unique(patient): test_eq(len(np.unique(fold[patient == g])), 1)

fig, ax = plt.subplots(figsize=(8, 2.6), layout="constrained")
order = np.argsort(many.present.sum(0), kind="stable")
ax.bar(range(20), possible[order], color="#e8e8e8", label="possible")
ax.plot(range(20), spread(fold)[order], "o", color="#2f9e5b", label="grouped_folds")
ax.plot(range(20), chance[order], "x", color="#c0504d", label="groups at random (mean of 50)")
ax.set_xticks(range(20), many.present.sum(0)[order])
ax.set(xlabel="positive images of the class", ylabel="folds with the class", ylim=(0, 5.4))
ax.legend(fontsize=8, loc="lower right")
print("images in each fold:", np.bincount(fold))


# %% [markdown]
# ## Fewer labels
#
# How well does a method do with 50 annotated slices? With 200? `select_labelled` keeps the annotation of some slices and erases that of
# the others, which stay as unlabelled ones. It takes whole groups in a random order, so that "50 slices" means a few patients, as in life;
# only the last group may be cut. For one seed the smaller choice is part of the larger, which makes curves over the number of labels
# smooth.

# %%
#| export
def select_labelled(
    slices: SliceSet,
    n: int|None, # how many annotated slices to keep; `None`: all
    seed: int = 0,
) -> SliceSet:
    "Keep the annotation of `n` labelled slices, chosen by groups (of the last one, as many as are still missing); the rest become unlabelled (nothing known, mask 0)."
    if n is None: return slices
    labelled = np.flatnonzero(slices.labelled)
    if not 1 <= n <= len(labelled): raise InputError(f"cannot keep {n} labelled slices of {len(labelled)}; choose 1 to {len(labelled)}")
    group, member = np.unique(slices.groups, return_inverse=True)
    rank = np.random.default_rng(seed).permutation(len(group))[member]
    keep = np.isin(np.arange(len(slices)), labelled[np.argsort(rank[labelled], kind="stable")[:n]])
    return replace(slices, masks=slices.masks*keep[:, None, None].astype(np.uint8), known=slices.known & keep[:, None])


# %%
few, fewer = select_labelled(many, 60), select_labelled(many, 20)
test_eq((few.labelled.sum(), fewer.labelled.sum(), len(few)), (60, 20, 300))
assert not (fewer.labelled & ~few.labelled).any()
cut = [g for g in np.unique(patient) if 0 < few.labelled[patient == g].mean() < 1]
assert len(cut) <= 1
test_eq(few.masks[~few.labelled].max(), 0)
test_fail(lambda: select_labelled(many, 301), contains="choose 1 to 300")


# %% [markdown]
# ## Checking
#
# Before hours of training, or before an upload, one wants to know that a folder or a submission is in order. Reading is checking, so these
# only collect what was read into a few facts.

# %%
#| export
def _facts(s: SliceSet) -> dict:
    "What there is in a set, in numbers."
    lab, positive = s.labelled, s.present.sum(0)
    names = s.classes.names if lab.any() else ()
    share = lambda cells: round(float(cells.mean()), 4)
    return dict(images=len(s), size=_size(s.images), labelled=int(lab.sum()), unlabelled=int((~lab).sum()),
                annotated_but_empty=int((lab & ~s.present.any(1)).sum()), groups=len(np.unique(s.groups)),
                cells=dict(present=share(s.present), absent=share(s.known & ~s.present), unknown=share(~s.known)),
                classes_never_seen=[n for n, k in zip(names, positive) if not k],
                images_with_class={n: int(k) for k, n in sorted(zip(positive, names)) if k})


# %%
#| export
def check_challenge(
    folder,
    annotated: str = "json", # json, all or present, as for `read_challenge`
) -> dict: # facts: classes, and for each split what is in it
    "Read both splits of a challenge folder (the test split may lack) and tell what is there; `InputError` for what is wrong."
    folder = Path(folder)
    facts = dict(classes=len(read_classes(folder)), train=_facts(train := read_challenge(folder, "train", annotated)))
    if (folder/"test-images").exists():
        test = read_challenge(folder, "test")
        if (sizes := [_size(x.images) for x in (train, test)])[0] != sizes[1]:
            raise InputError(f"{folder}: training images are {sizes[0]}, test images {sizes[1]}; resize one of them")
        facts["test"] = _facts(test)
    return facts


# %%
#| export
def check_submission(
    csv, # the submission
    folder, # the challenge folder whose `test-images` it is for
) -> dict: # facts: images, size, classes used, images left empty
    "Check a submission against the test images: columns, order, rows and values; `InputError` for what is wrong."
    names, images = read_images(Path(folder)/"test-images")
    classes = read_classes(folder)
    _same_names(_header(Path(csv)), names, csv, folder=Path(folder)/"test-images")
    masks = read_masks(csv, names, images.shape[1:], classes, cache=False)[1]
    present = present_classes(masks, len(classes))
    return dict(images=len(names), size=_size(images), classes_used=int(present.any(0).sum()), classes=len(classes),
                empty_images=int((~present.any(1)).sum()))


# %%
with tempfile.TemporaryDirectory() as d:
    os.environ["CTSEG_CACHE"] = f"{d}/cache"
    write_challenge(toy12, f"{d}/data")
    unseen = toy_set(4, seed=9)
    write_challenge(replace(unseen, masks=0*unseen.masks, known=np.zeros_like(unseen.known)), f"{d}/data", "test")
    for name, value in check_challenge(f"{d}/data").items(): print(name, value)
    write_masks(0*unseen.masks, unseen.names, f"{d}/submission.csv")
    print(check_submission(f"{d}/submission.csv", f"{d}/data"))
    write_masks(0*unseen.masks[:, :-1], unseen.names, f"{d}/submission.csv")
    try: check_submission(f"{d}/submission.csv", f"{d}/data")
    except InputError as e: print(str(e).replace(d, "…"))


# %% [markdown]
# ## Batches
#
# A network eats `Batch`es. The images are floats in 0…1, the masks integers, and `known` comes along. `weight` is for the methods that
# trust some pixels less than others; `index` says which slices these are.

# %%
#| export
@dataclass
class Batch:
    "B slices on the training device."
    image: torch.Tensor # float32 [B,1,H,W] in 0…1
    mask: torch.Tensor # int64 [B,H,W]; 0 = background or unknown
    known: torch.Tensor # bool [B,C], or [B,C,H,W] after mixing
    weight: torch.Tensor|None = None # float32 [B,1,H,W] or [B,C,H,W]; `None`: all 1
    index: torch.Tensor|None = None # int64 [B]: positions in the `SliceSet`

    def __len__(self): return len(self.image)
    def __getitem__(self, rows): return replace(self, **{k: t[rows] for k, t in vars(self).items() if t is not None}) # rows: a slice, or indices

    def concat(self, other: "Batch|None") -> "Batch":
        "Two batches as one (`None`: only this one); where one of them alone has weights, those of the other are 1."
        if other is None: return self
        both = self, other
        as_map = lambda b: b.known if b.known.ndim == 4 else b.known[:, :, None, None].expand(-1, -1, *b.mask.shape[1:])
        known = [b.known for b in both] if self.known.ndim == other.known.ndim else [as_map(b) for b in both]
        weight = None if self.weight is None and other.weight is None else torch.cat([torch.ones_like(b.image) if b.weight is None else b.weight for b in both])
        image, mask, index = (torch.cat([getattr(b, k) for b in both]) for k in ("image", "mask", "index"))
        return Batch(image, mask, torch.cat(known), weight, index)


# %% [markdown]
# The whole challenge, 2000 slices of 256x256 with masks, is 262 MB in 8 bits. That fits on any GPU. So `SliceData` keeps it there, and a
# batch is a lookup and a conversion on the device: no worker processes, no copies from the host, no waiting. It is a PyTorch map dataset
# as well, for those who prefer a `DataLoader`.

# %%
#| export
class SliceData(torch.utils.data.Dataset):
    "A `SliceSet` on a device: `data.batch(index)` is a `Batch`; `data[i]` is (image, mask, known, i), for a `DataLoader`. A structure of which a smaller size leaves no pixel is unknown there, not absent."
    def __init__(self,
        slices: SliceSet,
        device = "cpu",
        image_size: int|tuple[int, int]|None = None, # resize to this; `None`: as they are
        weights: np.ndarray|None = None, # bool [N, H, W]: which pixels teach; `None`: all
    ):
        size = (image_size,)*2 if isinstance(image_size, int) else image_size
        if size == slices.images.shape[1:]: size = None
        self.images = _resized(slices.images, size, device, mode="bilinear", antialias=True)
        self.masks = _resized(slices.masks, size, device, mode="nearest-exact")
        self.weights = None if weights is None else _resized(np.asarray(weights, np.uint8)*255, size, device, mode="bilinear", antialias=True)
        known = slices.known if size is None else still_known(slices.known, slices.present, self.masks.cpu().numpy())
        self.known = torch.tensor(known, device=device)

    def __len__(self): return len(self.images)

    def batch(self, index) -> Batch:
        "The slices at `index` (integers)."
        i = torch.as_tensor(index, dtype=torch.int64, device=self.images.device)
        unit = lambda x: x[i][:, None].float()/255
        return Batch(unit(self.images), self.masks[i].long(), self.known[i], None if self.weights is None else unit(self.weights), i)

    def __getitem__(self, i):
        b = self.batch([i])
        return b.image[0], b.mask[0], b.known[0], i


# %%
#| export
def _resized(x: np.ndarray, size, device, **how) -> torch.Tensor:
    "uint8 [N,H,W] on the device, resized if `size` is given; some at a time, since floats are four times as large."
    x = torch.from_numpy(np.ascontiguousarray(x)).to(device)
    if size is None: return x
    return torch.cat([F.interpolate(part[:, None].float(), size, **how).round().clamp(0, 255).byte()[:, 0] for part in x.split(256)])


# %%
data = SliceData(toy)
b = data.batch([0, 3])
test_eq((b.image.shape, b.mask.dtype, b.known.shape, b.index.tolist()), ((2, 1, 64, 64), torch.int64, (2, 4), [0, 3]))
test_close(b.image[1, 0].numpy(), toy.images[3]/255, eps=1e-6)
small = SliceData(toy, image_size=32)
test_eq(small.batch([0]).image.shape, (1, 1, 32, 32))
half = SliceData(toy, weights=np.arange(64) < np.full((len(toy), 64, 1), 32)).batch([1])  # only the left half teaches
test_eq((half.weight.shape, half.weight[0, 0, 0, [0, 31, 32]].tolist(), b.weight), ((1, 1, 64, 64), [1, 1, 0], None))
assert set(np.unique(small.masks)) <= set(np.unique(toy.masks))  # no class is invented between two others
dot = replace(toy[:1], masks=np.uint8(np.arange(64*64) == 10*64 + 10).reshape(1, 64, 64), known=np.ones((1, 4), bool))  # one pixel, too small to survive
test_eq([SliceData(dot, image_size=n).known[0].tolist() for n in (64, 32)], [[True]*4, [False, True, True, True]])
image, mask, known, i = next(iter(torch.utils.data.DataLoader(data, batch_size=3)))
test_eq((image.shape, i.tolist()), ((3, 1, 64, 64), [0, 1, 2]))


# %% [markdown]
# ### Which slices, in which order
#
# A run that was cut must go on *as if it had not been*. The simplest way to get there is to have nothing to restore: the order of epoch 7
# is a pure function of the seed and the number 7. And on several GPUs every process computes the same global batches and takes its own
# part of each.
#
# With `weights`, slices are drawn in proportion to them, for rare classes. Plain random draws would add luck: a slice due once may come
# not at all or thrice. *Systematic* sampling draws at even steps along the summed weights instead, so each slice comes as often as its
# weight says, give or take one.

# %%
#| export
class EpochSampler:
    "The order of slices: a pure function of (seed, epoch)."
    def __init__(self,
        n: int, # number of slices
        batch_size: int, # over all processes together; if n is smaller, slices repeat
        seed: int = 0,
        weights = None, # [n]: draw in proportion to these; `None`: each once an epoch
        rank: int = 0, # which process this is
        world: int = 1, # number of processes
        drop_last: bool = True, # leave out what does not fill a batch
    ):
        if n < 1: raise InputError("there are no slices to draw from")
        if batch_size < 1 or batch_size % world: raise InputError(f"batch_size {batch_size} must be a multiple of the {world} processes")
        self.n, self.batch_size, self.seed, self.rank, self.world, self.drop_last = n, batch_size, seed, rank, world, drop_last
        self.weights = None if weights is None else np.asarray(weights, float)/np.sum(weights)
        if weights is not None and self.weights.shape != (n,): raise InputError(f"{len(self.weights)} weights for {n} slices")

    def __len__(self): return max(1, self.n//self.batch_size if self.drop_last else -(-self.n//self.batch_size))

    def order(self, epoch: int) -> np.ndarray:
        "The n slices of an epoch, in order."
        rng = np.random.default_rng([self.seed, epoch])
        if self.weights is None: return rng.permutation(self.n)
        steps = (rng.random() + np.arange(self.n))/self.n
        return rng.permutation(np.searchsorted(self.weights.cumsum(), steps).clip(max=self.n - 1))

    def batches(self, epoch: int) -> list[torch.Tensor]: # int64
        "The batches of an epoch, this process's part of each."
        order = self.order(epoch)
        need = self.batch_size if self.n < self.batch_size else -(-self.n//self.world)*self.world
        order = np.resize(order, need)[:len(self)*self.batch_size]  # repeats from the start where there are too few
        whole = [order[i:i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        return [torch.from_numpy(b[self.rank::self.world].astype(np.int64)) for b in whole]


# %%
s = EpochSampler(10, 4, seed=3)
print([b.tolist() for b in s.batches(0)])
test_eq([b.tolist() for b in s.batches(7)], [b.tolist() for b in EpochSampler(10, 4, seed=3).batches(7)])
assert s.order(0).tolist() != s.order(1).tolist()
test_eq(sorted(torch.cat(EpochSampler(10, 4, drop_last=False).batches(0)).tolist()), list(range(10)))
parts = [EpochSampler(10, 4, rank=r, world=2).batches(1) for r in range(2)]
test_eq([sorted(torch.cat(p).tolist()) for p in zip(*parts)], [sorted(b.tolist()) for b in EpochSampler(10, 4).batches(1)])
test_eq([len(b) for b in EpochSampler(3, 8).batches(0)], [8])


# %% [markdown]
# Which weights? A class with 6 positive images should be seen more often than one with 600, but not a hundred times as often, or six
# images are learnt by heart. Following the repeat factors of [LVIS (Gupta et al. 2019, section 5)](https://arxiv.org/abs/1908.03195): a
# class of f positive images counts $(m/f)^{power}$, but at least 1, where m is the median over classes; a slice takes the largest of its
# classes; and `cap` bounds it.

# %%
#| export
def rare_weights(
    slices: SliceSet,
    power: float = .5, # 0: all alike; 1: in inverse proportion to the frequency
    cap: float = 8., # no slice weighs more
) -> np.ndarray: # float64 [N], at least 1
    "Sampling weights that favour slices with rare classes."
    f = slices.present.sum(0)
    if not f.any(): return np.ones(len(slices))
    factor = (np.median(f[f > 0])/np.maximum(f, 1))**power
    return (slices.present*factor).max(1).clip(1, cap)


# %%
w = rare_weights(many)
drawn = np.concatenate([EpochSampler(300, 10, weights=w).order(e) for e in range(50)])
times = np.bincount(drawn, minlength=300)/50
assert np.abs(times - 300*w/w.sum()).max() < .5
rarest = many.present[:, many.present.sum(0).argmin()]
print(f"a slice with the rarest class ({rarest.sum()} images) comes {times[rarest].mean():.1f} times an epoch, "
      f"one with only common classes {times[w == 1].mean():.1f} times")
test_eq(rare_weights(select_labelled(many, 20))[~fewer.labelled].max(), 1)

# %%
#| hide
import nbdev; nbdev.nbdev_export()
