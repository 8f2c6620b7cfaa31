# %% [markdown]
# # What a file is
#
# > What lies in the place of a file that was expected, and what to do with it.
#
# - skip_showdoc: true

# %%
#| default_exp core.filetypes

# %%
#| export
import errno
import os
import re
from pathlib import Path

from ctseg.core.errors import InputError
from ctseg.core.paths import real_path

# %%
#| hide
import gzip
import shutil
import tempfile

from fastcore.test import test_eq

# %% [markdown]
# Downloads come as archives, under other names, as a web page that says "forbidden", or as the pointer of Git LFS in place of the content. The
# first bytes of a file tell what it is.

# %%
#| export
_SIGNATURES = (  # offset, first bytes, what it is
    (0, b"PK\3\4", "an archive (zip)"),
    (0, b"7z\xbc\xaf", "an archive (7z)"),
    (0, b"Rar!", "an archive (rar)"),
    (257, b"ustar", "an archive (tar)"),
    (0, b"BZh", "packed with bzip2"),
    (0, b"\xfd7zXZ", "packed with xz"),
    (0, b"\x1f\x8b", "packed with gzip"),
    (128, b"DICM", "a DICOM file"),
    (344, b"n+1\0", "a NIfTI that is not packed"),
    (0, b"NRRD", "a NRRD file"),
    (0, b"ObjectType", "a MetaImage file"),
    (0, b"version https://git-lfs", "a pointer of Git LFS, whose content was not fetched (git lfs pull)"),
    (0, b"<<<<<<<", "text with marks of a merge that was not solved (git)"),
    (0, b"<", "a web page"),
    (0, b"%PDF", "a PDF"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"PAR1", "a Parquet file"),
    (0, b"\xff\xfe", "text in UTF-16"),
    (0, b"\xfe\xff", "text in UTF-16"),
)

def content_of(path: Path) -> str:
    "What the first bytes of a file say that it is; \"\" if they say nothing, and for what is no file."
    if not os.path.isfile(path): return ""  # a pipe may be silent
    try:
        with open(path, "rb") as f: start = f.read(512)
    except OSError as e:
        if e.errno in (errno.EMFILE, errno.ENFILE):  # says nothing of this file
            raise
        return ""
    if not start: return "empty"
    return next((kind for at, mark, kind in _SIGNATURES if start[at:].startswith(mark)), "")


# %%
work = Path(tempfile.mkdtemp())
(work/"page").write_text("<html>403</html>")
(work/"packed").write_bytes(gzip.compress(b"x"))
(work/"empty").write_bytes(b"")
print([content_of(work/name) for name in ("page", "packed", "empty", "nowhere")])

# %% [markdown]
# ## A file in the place of a folder
#
# Who gives an archive is told to unpack it; who gives a file, to give its folder. A search of the whole file system would take hours, and what
# a system shows of itself as files (`/proc`) has no end: neither is a folder of data.

# %%
#| export
ARCHIVES = (".zip", ".tgz", ".tar", ".tar.gz", ".7z", ".rar") # endings
PACKED = (*ARCHIVES, ".gz", ".bz2", ".xz", ".zst") # or a single packed file

def called_nifti(path: Path) -> bool:
    "Is a file called as a NIfTI, packed or not?"
    return path.name.lower().endswith((".nii", ".nii.gz"))

def _is_archive(path: Path) -> bool:
    "Is this packed, by its name or its content? A NIfTI or a table may be, and is none."
    name = path.name.lower()
    if name.endswith((".nii.gz", ".csv.gz")): return False  # read as they are
    return name.endswith(PACKED) or content_of(path).startswith(("an archive", "packed"))

SYSTEM = Path("/proc"), Path("/sys")

def is_system(real: Path) -> bool:
    "Is a path without links the root of all, or a place of the system? A drive of Windows is neither."
    return real in (Path("/"), Path("/dev")) or any(real.is_relative_to(place) for place in SYSTEM)


# %%
print({place: is_system(Path(place)) for place in ("/", "/proc/1", "/dev/shm/data", "/home")})


# %%
#| export
def check_folder(path: Path, expected: str):
    "Raise `InputError` unless this is a folder; `expected` is what it should hold."
    if is_system(real_path(path)):
        raise InputError(f"{path}: a place of the system, which is not searched; expected {expected}")
    if path.is_dir(): return
    if not path.exists():
        raise InputError(f"{path}: no such folder; expected {expected}")
    if _is_archive(path):
        raise InputError(f"{path}: an archive; unpack it and give the folder; expected {expected}")
    raise InputError(f"{path}: a file; give the folder that it lies in; expected {expected}")


# %%
(work/"scans.zip").write_bytes(b"PK\3\4")
(work/"y_train.csv.gz").write_bytes(b"\x1f\x8b")
for name in ("nowhere", "scans.zip", "page", "y_train.csv.gz"):
    try: check_folder(work/name, "scans")
    except InputError as e: print(str(e).replace(str(work), "…"))

# %% [markdown]
# ## Another name in the place of the expected one
#
# A browser calls a second download `y_train (1).csv`, Windows hides that a file is called `y_train.csv.txt`, and an archive unpacks into a folder
# of its own.

# %%
#| export
_COPY = r" ?\(\d+\)|[ _-]+(?:copy|kopie|copie)\b(?: \d+)?"

def _letters(name: str) -> str:
    "A name without what systems add to it, and without the marks that people choose differently."
    plain = re.sub(_COPY, "", name.lower().removesuffix(".txt"))
    return re.sub(r"[\W_]", "", plain)

def _kind(path: Path) -> str:
    "A folder, a file, or a link to nothing."
    if path.is_dir(): return "a folder"
    return "a file" if path.exists() else "a link that leads nowhere"


# %%
#| export
def _unpacked(archive: str) -> str:
    "The name of an archive without its ending."
    endings = [ending for ending in ARCHIVES if archive.lower().endswith(ending)]
    return archive[:len(archive) - len(max(endings, key=len, default=""))]

def _may_hold(path: Path, name: str) -> bool:
    """May an archive hold what is called so, by its own name?

    Not one of the other split, of another kind, or of what is there already."""
    if not path.name.lower().endswith(ARCHIVES): return False
    inner = _unpacked(path.name)
    if _letters(inner) == _letters(name): return True
    splits = {word for word in re.findall("[a-z]+", inner.lower()) if word in ("train", "test")}
    if splits and not any(split in name for split in splits): return False
    return Path(inner).suffix in ("", Path(name).suffix) and not (path.parent/inner).exists()


# %%
#| export
def instead_of(
    folder: Path,
    name: str, # of the file or folder that is missing
    archives: bool = True, # it may lie in any archive beside
) -> str:
    "What a folder holds in place of `name`, and what to do, in brackets; \"\" if it holds nothing like it."
    if not folder.is_dir(): return ""
    beside = sorted(folder.iterdir())
    if folder/name in beside:
        return f" ({name} is there, but is {_kind(folder/name)})"
    near = [path.name for path in beside if _letters(path.name) == _letters(name) != ""]
    if near: return f" ({near[0]} is there: call it {name})"
    deeper = sorted(folder.glob(f"*/{name}"))
    if deeper: return f" (it lies in {deeper[0].parent.name}/: move it up)"
    packed = [path.name for path in beside if archives and _may_hold(path, name)]
    packed.sort(key=lambda archive: _letters(_unpacked(archive)) != _letters(name))  # one called so is first
    return f" (unpack {packed[0]} first)" if packed else ""


# %%
for name in ("y_train (1).csv", "annotated_labels.json.txt", "inner/recipe.json"):
    (work/name).parent.mkdir(exist_ok=True)
    (work/name).write_text("")
(work/"test-images.zip").write_text("")
for name in ("y_train.csv", "annotated_labels.json", "recipe.json", "train-images", "test-images"):
    print(f"no {name}{instead_of(work, name)}")
test_eq(instead_of(work/"inner", "y_train.csv"), "")

# %%
#| hide
shutil.rmtree(work)
