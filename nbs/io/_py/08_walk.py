# %% [markdown]
# # Walking through folders
#
# > Every folder below a path once, and what was left lying there.

# %%
#| default_exp io.walk

# %%
#| export
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ctseg.core.filetypes import PACKED, is_system
from ctseg.core.paths import real_path
from ctseg.data.images import natural_key

# %%
#| hide
import shutil
import tempfile

# %% [markdown]
# People keep scans wherever there is room: in folders of folders, behind links, next to archives and files of other programs. Whoever
# looks for scans must see each folder once, and must be able to say what was left lying.

# %%
work = Path(tempfile.mkdtemp())
for name in ("p2/ct", "p10", ".trash/p3", "__MACOSX/p2"): (work/"heap"/name).mkdir(parents=True)
(work/"disk"/"p5").mkdir(parents=True)
(work/"heap"/"link").symlink_to(work/"disk")
(work/"disk"/"p5"/"back").symlink_to(work/"heap")
(work/"heap"/"p10"/"scan.nrrd").write_bytes(b"NRRD0004\n")
(work/"heap"/"p10"/"scans.zip").write_bytes(b"PK\3\4")


# %% [markdown]
# ## Folders
#
# Links are followed, but no folder is entered twice, so a link to a folder above ends nothing in a circle. Hidden folders are left out:
# a waste basket, the copies that a Mac leaves in archives (`__MACOSX`).

# %%
#| export
def is_visible(path: Path) -> bool:
    "Is this neither hidden nor what a Mac leaves in archives?"
    return not path.name.startswith(".") and path.name != "__MACOSX"

def _inner_folders(folder: Path) -> list[Path]:
    "The visible folders of a folder in natural order; none of one that may not be read."
    try:
        inner = [path for path in folder.iterdir() if is_visible(path) and os.path.isdir(path)]
    except OSError: return []
    return sorted(inner, key=lambda path: natural_key(path.name))


# %% [markdown]
# Nothing is searched that is a [place of the system](../core/14_filetypes.ipynb), not even behind a link. A search through many folders says so on
# its way.

# %%
#| export
MANY = 10_000  # folders, after which a search tells how much it goes through
def folders_below(folder: Path) -> list[Path]:
    """The folder and all visible ones below it, in natural order, links followed; each is there once.

    One that may not be read is among them, so whoever reads its files learns of it.
    """
    found, entered, waiting = [], set(), [folder]
    while waiting:
        here = waiting.pop()
        real = real_path(here)
        if real in entered or is_system(real): continue
        entered.add(real)
        found.append(here)
        if len(found) == MANY:
            warnings.warn(f"{folder}: more than {MANY:,} folders, still searching")
        waiting += reversed(_inner_folders(here))
    return found

def visible_files(folder: Path) -> Iterator[Path]:
    "The files of a folder in natural order, without hidden ones, pipes and devices."
    for path in sorted(folder.iterdir(), key=lambda path: natural_key(path.name)):
        if os.path.isfile(path) and is_visible(path): yield path


# %%
heap = work/"heap"
print([str(d.relative_to(heap)) for d in folders_below(heap)], [p.name for p in visible_files(heap/"p10")])

# %% [markdown]
# ## What was left lying
#
# The *name* tells which files hold scans in a form that is not read here: archives, and volumes of other programs. What a file is that cannot be
# read, its first [bytes](../core/14_filetypes.ipynb) tell.

# %%
#| export
_ENDINGS = {
    "packed file": PACKED,
    "NRRD file": (".nrrd", ".nhdr"),
    "MetaImage file": (".mha", ".mhd"),
    "MGH file": (".mgh", ".mgz"),
    "pair of .hdr and .img": (".hdr",),
}

_PACKED_TABLES = (".csv.gz", ".json.gz", ".txt.gz")

def foreign_kind(name: str) -> str:
    "What a file that may hold scans and is not read is, by its name; \"\" for any other."
    low = name.lower()
    if low.endswith((".nii.gz", *_PACKED_TABLES)): return ""
    return next((kind for kind, endings in _ENDINGS.items() if low.endswith(endings)), "")


# %%
print([foreign_kind(name) for name in ("a.nii.gz", "A.ZIP", "a.tar.gz", "a.mha", "notes.txt")])


# %%
#| export
def foreign_files(folder: Path) -> Counter:
    "Files below a folder that may hold scans and are not read: what they are → how many."
    names = (path.name for inner in folders_below(folder) for path in visible_files(inner))
    return Counter(kind for kind in map(foreign_kind, names) if kind)

def foreign_hint(passed_over: Counter) -> str:
    "What a message says of files that are not read, and what to do with them; \"\" if there are none."
    if not passed_over: return ""
    several = {kind: "s" if n > 1 and kind.endswith("file") else "" for kind, n in passed_over.items()}
    counts = ", ".join(f"{n} {kind}{several[kind]}" for kind, n in passed_over.most_common())
    todo = ["unpack them first"] if passed_over["packed file"] else []
    if any(passed_over[kind] for kind in _ENDINGS if kind != "packed file"):
        todo.append("convert to NIfTI")
    return f" (passed over: {counts})" + "".join(f"; {what}" for what in todo)


# %%
print(foreign_hint(foreign_files(heap)))


# %% [markdown]
# A folder of slices is no folder of scans. Whoever gives one is told which commands read it.

# %%
#| export
def instead_of_scans(folder: Path, passed_over: Counter) -> str:
    "What a message says of a folder without scans: that it holds slices, or what was passed over."
    if any((folder/f"{split}-images").is_dir() for split in ("train", "test")):
        return "; it is a challenge folder of slices, which `ctseg fit` and `ctseg predict` read"
    return foreign_hint(passed_over)


# %%
(heap/"test-images").mkdir()
print(instead_of_scans(heap, foreign_files(heap)))

# %%
#| hide
shutil.rmtree(work)
