# %% [markdown]
# # Stores
#
# > More slices than memory: chunks on a disk or an object store, with an index that says everything else.
#
# - skip_showdoc: true

# %%
#| default_exp data.store

# %% [markdown]
# A challenge folder of 400,000 slices cannot be read into memory, and its table of masks has a row for each pixel. A **store** holds the same
# slices for training: images and masks in compressed chunks (the [Zarr](https://zarr.dev) format, version 3), and beside them an index of names,
# groups, classes, `known`, and which values each mask holds. Opening a store reads the index. Choosing slices, dividing them and drawing batches
# asks the index too. Pixels are read when a batch needs them.
#
# PNG and CSV stay the form of the challenge; a store is made from them by `ctseg store DATA --out STORE`.

# %%
#| export
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ctseg.core.anatomy import ClassMap
from ctseg.core.atomic import atomic_path, refuse_existing
from ctseg.core.errors import InputError, did_you_mean
from ctseg.core.paths import refuse_special, refuse_unread
from ctseg.core.schema import (
    COUNT, HOW_CUT, SPAN, anything, fields, fit_schema, listed, mapped, maybe, text,
)
from ctseg.data.lazy import LazyPixels, blocks, pack_seen, seen_values, take
from ctseg.data.slices import SliceSet, content_hash

# %%
#| hide
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from fastcore.test import test_eq, test_fail

from ctseg.data.toys import toy_set


# %% [markdown]
# ## Where
#
# A store is a folder, or an address that [fsspec](https://filesystem-spec.readthedocs.io) understands, such as `s3://bucket/thorax`.

# %%
#| export
def import_zarr() -> ModuleType:
    "The package zarr; `InputError` that tells how to get it."
    remedy = "run: pip install 'ctseg[store]'"
    try:
        import zarr
    except ImportError as e:
        raise InputError(f"zarr is not installed ({e}), stores need it; {remedy}") from None
    if int(zarr.__version__.split(".")[0]) < 3:
        raise InputError(f"zarr {zarr.__version__} is too old for stores; {remedy}")
    return zarr

def store_place(place: str|Path) -> str|Path:
    "The address or path of a store; an address that was made a `Path` has lost one of its two slashes."
    text = place.as_posix() if isinstance(place, Path) else place
    address = re.match(r"([a-z][a-z0-9+.]+):/{1,2}(?=[^/])", text)
    if address is None: return Path(place)
    scheme = address[1]
    rest = text[address.end():]
    return f"{scheme}://{rest}"

def is_store(place: str|Path) -> bool:
    "Whether slices are to be read from a store: an address, or a folder of Zarr."
    place = store_place(place)
    return isinstance(place, str) or (place/"zarr.json").is_file()


# %%
print(Path("s3://bucket/thorax"), "→", store_place(Path("s3://bucket/thorax")))
test_eq(store_place(Path("s3://bucket/thorax")), "s3://bucket/thorax")
test_eq((is_store("memory://toys"), is_store("../../data_sample")), (True, False))

# %% [markdown]
# ## Writing
#
# A chunk is what must be read for one slice, so it is one slice, or as many small ones as make 64 kB. Chunks are collected in *shards*, files of
# some megabytes, because millions of small files are slow on any disk. A shard is written at once, so this is the memory that writing takes.
# Chunks carry a checksum; one of zeros takes no room.

# %%
#| export
CHUNK, SHARD = 1 << 16, 1 << 23 # bytes, before compression

def chunk_sizes(
    height: int,
    width: int,
) -> tuple[int, int]:
    "How many slices are in a chunk, and how many in a shard."
    chunk = max(1, CHUNK//(height*width))
    shards = max(1, SHARD//(chunk*height*width))
    return chunk, chunk*shards

def _write_pixels(group, name: str, pixels):
    "Write uint8 [N,H,W], an array or lazy, in chunks of a group."
    from zarr.codecs import ZstdCodec
    height, width = pixels.shape[1:]
    chunk, shard = chunk_sizes(height, width)
    array = group.create_array(
        name, shape=pixels.shape, dtype="uint8", fill_value=0, chunks=(chunk, height, width),
        shards=(shard, height, width), compressors=ZstdCodec(level=3, checksum=True))
    first = 0
    for block in blocks(pixels, shard*height*width):
        array[first:first + len(block)] = block
        first += len(block)


# %%
for side in (64, 256, 512):
    print(side, chunk_sizes(side, side))

# %% [markdown]
# The index is small: a bit for each cell, 32 bytes for the values on a mask, a name, a number for the patient. It is kept as arrays too.

# %%
#| export
FORMAT = 1 # of stores; another version of ctseg may have written another one
PIXELS, INDEX = ("images", "masks"), ("known", "groups", "names", "seen")

def _index_arrays(slices: SliceSet) -> dict[str, np.ndarray]:
    "What a store keeps of slices beside their pixels, by name."
    if any("\n" in name for name in slices.names):
        raise InputError("a slice has a line end in its name, which a store cannot hold; rename it")
    seen = [np.zeros((0, 32), np.uint8)]
    for block in blocks(slices.masks):
        values = seen_values(block)
        seen.append(pack_seen(values))
    names = "\n".join(slices.names).encode()
    return {
        "known": slices.known,
        "groups": slices.groups,
        "names": np.frombuffer(names, np.uint8),
        "seen": np.concatenate(seen),
    }

def _class_facts(classes: ClassMap) -> dict[str, Any]:
    "Classes as JSON."
    return {
        "names": list(classes.names),
        "pairs": [list(pair) for pair in classes.pairs],
        "unions": [[union, list(members)] for union, members in classes.unions],
    }


# %%
#| export
def _write_split(group, slices: SliceSet):
    "One split of a store."
    _write_pixels(group, "images", slices.images)
    _write_pixels(group, "masks", slices.masks)
    for name, array in _index_arrays(slices).items():
        group.create_array(name, data=array)

def _write_arrays(group, arrays: dict[str, np.ndarray]):
    "Further facts of a split."
    from zarr.codecs import ZstdCodec
    for name, array in arrays.items():
        group.create_array(name, data=array, compressors=ZstdCodec(checksum=True))


# %% [markdown]
# The mark of a store is written last, with the fingerprint of each split, which is computed from what lies on the disk then: it is the same as in
# memory, so a run can go on from either.

# %%
#| export
def _write_splits(root, splits: dict[str, SliceSet], notes: dict[str, Any], arrays: dict[str, dict]):
    "Fill the root of a new store."
    facts_of_splits = {}
    for name, slices in splits.items():
        group = root.create_group(name)
        _write_split(group, slices)
        _write_arrays(group, arrays.get(name, {}))
        classes = _class_facts(slices.classes)
        parts = {pixels: group[pixels].nchunks_initialized for pixels in PIXELS}
        facts: dict[str, Any] = {"classes": classes, "parts": parts}
        stored = _read_split(root, name, facts, f"{name} of the store")
        facts["fingerprint"] = content_hash(stored)
        facts_of_splits[name] = facts
    root.attrs["ctseg"] = {"format": FORMAT, "splits": facts_of_splits, "notes": notes}


# %%
#| export
def write_store(
    slices: SliceSet|dict[str, SliceSet], # or by split: train, test
    out: str|Path, # a folder that is not there yet, or an address
    notes: dict[str, Any]|None = None, # kept beside the slices, as JSON
    arrays: dict[str, dict[str, np.ndarray]]|None = None, # by split and name: further facts, a row a slice
    beside: Sequence[Path] = (), # files to keep in the store, where it is a folder
):
    "Write slices, in memory or not, as a store; whole or not at all where it is a folder."
    zarr = import_zarr()
    place = store_place(out)
    splits = {"train": slices} if isinstance(slices, SliceSet) else slices
    content = splits, notes or {}, arrays or {}
    if isinstance(place, Path):
        refuse_existing(place)
        with atomic_path(place, new=True) as tmp:
            _write_splits(zarr.open_group(tmp, mode="w"), *content)
            for path in beside: shutil.copyfile(path, tmp/path.name)
        return
    _write_splits(zarr.open_group(place, mode="w"), *content)


# %% [markdown]
# ## Reading

# %% [markdown]
# A store may come from anywhere, so what it says of itself is [checked](../core/22_schema.ipynb).

# %%
#| export
MAKE_AGAIN = "make the store again"
_PAIR = listed(anything, 2)
OF_CLASSES = fields({"names": listed(text), "pairs": listed(listed(COUNT, 2)), "unions": listed(_PAIR)})
PARTS = fields({name: COUNT for name in PIXELS})
OF_SPLIT = fields({"classes": OF_CLASSES, "parts": PARTS, "fingerprint": text})
_NOTES = fields({}, {"slicing": maybe(HOW_CUT), "neighbour_mm": mapped(SPAN)})
FACTS = fields({"splits": mapped(OF_SPLIT), "notes": _NOTES})

# %%
fit_schema({"splits": {}, "notes": {}}, FACTS, "toys.zarr", MAKE_AGAIN)
wrong = {"splits": {"train": 3}, "notes": {}}
test_fail(lambda: fit_schema(wrong, FACTS, "toys.zarr", MAKE_AGAIN), contains="splits.train is 3")

# %%
#| export
SOME = 64 # rows that zarr is asked for at once: it takes much memory for each if they are scattered

def _reason_of(error: Exception) -> str:
    "The first line of an error; its kind where it says nothing."
    text = str(error)
    return text.splitlines()[0] if text else type(error).__name__


# %%
print(_reason_of(OSError("no disk\nat all")), "-", _reason_of(OSError()))


# %%
#| export
class StoredPixels:
    "Images or masks that lie in a store, as a `PixelSource`."
    def __init__(self,
        array, # of zarr, [M,H,W]
        seen: np.ndarray|None, # uint8 [M,32]
        where: str, # for errors
    ):
        self.array = array
        self.seen = seen
        self.where = where
        count, height, width = map(int, array.shape)
        self.shape = count, height, width

    def read(self, rows: np.ndarray) -> np.ndarray:
        "The slices at `rows`, int64 [n] in ascending order and each once: uint8 [n,H,W]."
        first, last = int(rows[0]), int(rows[-1])
        try:
            if last - first + 1 == len(rows):
                return self.array[first:last + 1]
            parts = []
            for start in range(0, len(rows), SOME):
                some = rows[start:start + SOME]
                parts.append(self._read_some(some))
            return np.concatenate(parts)
        except Exception as e: # each way of being damaged or out of reach has its own
            refuse_unread(self.where, e)
            problem = f"slices {first} to {last} cannot be read ({_reason_of(e)})"
            raise InputError(f"{self.where}: {problem}; {MAKE_AGAIN}") from None

    def _read_some(self, rows: np.ndarray) -> np.ndarray:
        "The same, of few rows: with those between them where these are not many more."
        first, last = int(rows[0]), int(rows[-1])
        if last - first < 4*len(rows):
            between = self.array[first:last + 1]
            return between[rows - first]
        return self.array.oindex[rows]


# %% [markdown]
# An index that is damaged is told in one line. What it says of the slices is checked as for any `SliceSet`.

# %%
#| export
def _fit_together(index: dict[str, Any], pixels: dict[str, Any]) -> bool:
    "Whether the arrays of a split have the shapes and the types that belong to each other."
    shape = pixels["images"].shape
    if len(shape) != 3: return False
    if pixels["masks"].shape != shape: return False
    if index["seen"].shape != (shape[0], 32): return False
    pieces = [piece for array in pixels.values() for piece in (array.chunks, array.shards) if piece]
    if not all(min(piece) > 0 for piece in pieces): return False
    of_bytes = [*pixels.values(), index["seen"]]
    return all(array.dtype == "uint8" for array in of_bytes)

MAX_INDEX = 1 << 31 # bytes that an array of the index may claim

def _read_index(root, split: str, where: str) -> dict[str, Any]:
    "The arrays of a split: the index in memory, pixels as they lie there."
    try:
        group = root[split]
        claimed = max(group[name].nbytes for name in INDEX)
        if claimed > MAX_INDEX: raise OverflowError
        index = {name: group[name][...] for name in INDEX}
        names = index["names"].tobytes().decode()
        index["names"] = names.split("\n")
        pixels = {name: group[name] for name in PIXELS}
    except Exception as e:  # zarr and its codecs raise many kinds for damaged chunks
        refuse_unread(where, e)
        problem = f"the index cannot be read ({type(e).__name__})"
        raise InputError(f"{where}: {problem}; {MAKE_AGAIN}") from None
    if not _fit_together(index, pixels):
        raise InputError(f"{where}: its arrays do not fit together; {MAKE_AGAIN}")
    return index | pixels


# %%
#| export
def _classes_of(facts: dict[str, Any]) -> ClassMap:
    "The classes that `_class_facts` wrote."
    try:
        unions = tuple((union, tuple(members)) for union, members in facts["unions"])
        names = tuple(facts["names"])
        pairs = tuple(tuple(pair) for pair in facts["pairs"])
        return ClassMap(names, pairs, unions)
    except (TypeError, ValueError) as e:
        reason = str(e).splitlines()[0]
        raise InputError(f"the classes of a store: {reason}; {MAKE_AGAIN}") from None

def _without_empty(masks: LazyPixels) -> LazyPixels:
    "The same masks; those on which nothing is drawn are never read."
    seen = seen_values(masks)
    drawn = seen[:, 1:].any(1)
    rows = np.where(drawn, masks.rows, -1)
    return LazyPixels(masks.source, rows)


# %%
#| export
def _read_split(root, split: str, facts: dict[str, Any], where: str) -> SliceSet:
    "One split of a store, its pixels lazy."
    index = _read_index(root, split, where)
    for name, count in facts["parts"].items():
        chunks = index[name].nchunks_initialized
        if chunks != count: # else zeros would be read for what is missing
            raise InputError(f"{where}: parts are missing of the {name}; copy the store again")
    stored_images = StoredPixels(index["images"], None, f"{where}, images")
    stored_masks = StoredPixels(index["masks"], index["seen"], f"{where}, masks")
    images = LazyPixels(stored_images)
    masks = _without_empty(LazyPixels(stored_masks))
    names = index["names"] if len(images) else []
    classes = _classes_of(facts["classes"])
    return SliceSet(images, masks, index["known"], names, index["groups"], classes)


# %% [markdown]
# What is no store, or the store of another version, is told too.

# %%
#| export
MAX_PART = 1 << 30 # bytes of a file of a store

def _refuse_odd_parts(place: Path):
    "`InputError` for a store in which a file is a pipe, a device, or of gigabytes: Zarr would read it whole."
    for folder, _, names in os.walk(place):
        for name in names: refuse_special(Path(folder)/name, MAX_PART)


# %%
#| export
def _open_root(place: str|Path) -> tuple[Any, dict[str, Any]]:
    "The root of a store and what it says of itself; `InputError` for what is none."
    zarr = import_zarr()
    if isinstance(place, Path): _refuse_odd_parts(place)
    try:
        root = zarr.open_group(place, mode="r")
        facts = dict(root.attrs).get("ctseg")
    except Exception as e:  # of zarr, or of the file system a URL leads to
        refuse_unread(place, e)
        raise InputError(f"{place}: no store can be opened there ({type(e).__name__})") from None
    if not isinstance(facts, dict):
        problem = "not a store of ctseg, or one that was not finished"
        raise InputError(f"{place}: {problem}; make it with `ctseg store`")
    version = facts.get("format")
    if version != FORMAT:
        problem = f"a store of another version of ctseg (format {version})"
        raise InputError(f"{place}: {problem}; {MAKE_AGAIN}")
    if not fit_schema(facts, FACTS, place, MAKE_AGAIN)["splits"]:
        raise InputError(f"{place}: a store without slices; {MAKE_AGAIN}")
    return root, facts


# %%
#| export
def store_splits(place: str|Path) -> list[str]:
    "The splits that a store holds."
    _, facts = _open_root(store_place(place))
    return list(facts["splits"])

def store_notes(place: str|Path) -> dict[str, Any]:
    "What was noted when a store was written."
    _, facts = _open_root(store_place(place))
    return facts["notes"]


# %%
with tempfile.TemporaryDirectory() as d:
    test_fail(lambda: store_splits(d), contains="no store can be opened there")


# %%
#| export
def read_store(
    place: str|Path, # a folder or an address
    split: str = "train",
) -> SliceSet: # its pixels lazy
    "One split of a store. Its index is read and checked, its pixels when they are asked for."
    place = store_place(place)
    root, facts = _open_root(place)
    if split not in facts["splits"]:
        raise did_you_mean(f"split of {place}", split, facts["splits"])
    facts_of_split = facts["splits"][split]
    slices = _read_split(root, split, facts_of_split, f"{place}, {split}")
    vars(slices)["_fingerprint"] = facts_of_split["fingerprint"]
    return slices


# %% [markdown]
# Forty slices, thirty of them without annotation, in a store. It looks the same as in memory:

# %%
toys, truth = toy_set(40, 10)
with tempfile.TemporaryDirectory() as d:
    place = Path(d)/"toys.zarr"
    write_store(toys, place)
    stored = read_store(place)
    print(stored)
    print(stored.images, stored.masks, (stored.masks.rows >= 0).sum(), "masks drawn")
    test_eq(stored.fingerprint(), toys.fingerprint())
    test_eq(content_hash(stored), toys.fingerprint())
    few = stored[[30, 2, 5]]
    test_eq(few.images[1:], toys.images[[2, 5]])
    test_eq(few.in_memory().fingerprint(), toys[[30, 2, 5]].fingerprint())
    test_eq(content_hash(replace(stored, known=toys.known)), toys.fingerprint())
    test_fail(lambda: read_store(place, "tset"), contains="split")
    test_fail(lambda: write_store(toys, place), contains="exists already")


# %% [markdown]
# Facts that a store may hold beside its index, such as [where in a scan each slice lies](../io/57_neighbours.ipynb):

# %%
#| export
def store_arrays(
    place: str|Path, # a folder or an address
    split: str,
    names: Sequence[str],
) -> dict[str, np.ndarray]: # empty: the store has none of them
    "Some of the further facts of a store's slices, whole numbers with a row for each; `InputError` for damaged ones."
    root, _ = _open_root(store_place(place))
    try:
        group = root[split]
        arrays = {name: group[name][...] for name in names if name in group}
        slices = group["images"].shape[0]
    except Exception as e:  # as above
        refuse_unread(f"{place}, {split}", e)
        raise InputError(f"{place}, {split}: cannot be read ({type(e).__name__}); {MAKE_AGAIN}") from None
    fine = all(len(array) == slices and array.dtype == np.int64 for array in arrays.values())
    if not fine or len(arrays) not in (0, len(names)):
        raise InputError(f"{place}, {split}: its arrays do not fit together; {MAKE_AGAIN}")
    return arrays


# %%
with tempfile.TemporaryDirectory() as d:
    write_store(toys, f"{d}/s", arrays={"train": {"place": np.arange(len(toys))}})
    test_eq(store_arrays(f"{d}/s", "train", ["place"])["place"], np.arange(len(toys)))
    test_eq(store_arrays(f"{d}/s", "train", ["volume"]), {})
    test_fail(lambda: store_arrays(f"{d}/s", "train", ["place", "volume"]), contains="fit together")


# %% [markdown]
# ## Checking
#
# To check a store is to read all of it, a block at a time, and to compare with its fingerprint.

# %%
#| export
def check_stored(slices: SliceSet, where: str|Path):
    "`InputError` unless all that a split of a store holds is what was written; in the memory of a block."
    if content_hash(slices) != slices.fingerprint():
        raise InputError(f"{where}: its content is not what was written; {MAKE_AGAIN}")
    first = 0
    for block in blocks(slices.masks):
        part = slice(first, first + len(block))
        indexed = take(slices.masks, part)
        if not np.array_equal(seen_values(block), seen_values(indexed)):
            raise InputError(f"{where}: the index says other classes than the masks hold; {MAKE_AGAIN}")
        first += len(block)


# %%
with tempfile.TemporaryDirectory() as d:
    place = Path(d)/"toys.zarr"
    write_store(toys, place)
    check_stored(read_store(place), "toys")
    (place/"train/images/c/0/0/0").unlink() # a file that got lost when the store was copied
    test_fail(lambda: read_store(place), contains="parts are missing")
    write_store(toys, Path(d)/"other.zarr")
    shard = Path(d)/"other.zarr/train/masks/c/0/0/0"
    content = bytearray(shard.read_bytes())
    content[20] ^= 255
    shard.write_bytes(content)
    damaged = read_store(Path(d)/"other.zarr")
    test_fail(lambda: check_stored(damaged, "toys"), contains="cannot be read")
