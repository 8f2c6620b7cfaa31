# %% [markdown]
# # NIfTI
#
# > Volumes and label maps as NIfTI files, checked as they are read; predictions as NIfTI files.

# %%
#| default_exp io.nifti

# %%
#| export
import gzip
import os
import re
import shutil
import unicodedata
from pathlib import Path

import numpy as np

from ctseg.core.atomic import atomic_path
from ctseg.core.errors import InputError
from ctseg.core.filetypes import called_nifti, content_of
from ctseg.core.json_files import write_json
from ctseg.core.paths import refuse_special, refuse_unread
from ctseg.data.cache import reading
from ctseg.data.images import natural_key
from ctseg.io.geometry import slice_axes
from ctseg.io.index import predicted_volumes
from ctseg.io.outputs import new_folder
from ctseg.io.scale import check_scan, scale_notes
from ctseg.io.volumes import import_volumes_package
from ctseg.io.walk import is_visible

# %%
#| hide
import os
import tempfile

import nibabel as nib
from fastcore.test import test_close, test_eq, test_fail

from ctseg.data.challenge import read_challenge
from ctseg.io.cases import Case
from ctseg.io.folders import write_volumes
from ctseg.io.slicing import Slicing
from ctseg.io.toy_scans import TORSO_CLASSES, torso_scans

# %% [markdown]
# [NIfTI](https://nifti.nimh.nih.gov/nifti-1) files hold the affine in their header, in the very convention used here. A file can be
# damaged, a series of volumes, or without any affine. Each of these is told before it becomes a wrong picture.

# %%
#| export
_PLAIN, _PACKED = "a NIfTI that is not packed", "packed with gzip"  # as `content_of` says it
_KINDS = {"EOFError": "cut off", "OSError": "cut off", "BadGzipFile": "its checksum is wrong",
          "MemoryError": "too many voxels"}

def _problem(path, error: Exception) -> tuple[str, str]:
    "What a file is in place of a NIfTI, and what to do."
    content, called_packed = content_of(path), str(path).lower().endswith(".gz")
    if content == _PLAIN and called_packed: return content, "call it .nii"
    if content == _PACKED and not called_packed:
        return content, "call it .nii.gz"
    if content not in ("", _PLAIN, _PACKED):
        return content, "put the NIfTI itself there"
    kind = type(error).__name__
    if kind == "HeaderDataError": kind = f"its header: {error}"
    return _KINDS.get(kind, kind), "it is damaged or something else, copy it again"


# %%
print(*_problem("scan.nii.gz", EOFError()), sep=": ")


# %% [markdown]
# nibabel reads as many bytes as the header asks for, and no more. Where a file has more, either its header is wrong or two
# files were joined. It also takes an infinite slope for none. (0 and NaN do mean "no scaling": 0 by the standard, NaN as
# nibabel writes it.)

# %%
#| export
def _check_scaling(header, path):
    "`InputError` for a header whose values would be scaled by infinity."
    slope = float(header["scl_slope"])
    if np.isinf(slope):
        raise InputError(f"{path}: scales its voxels by {slope:g} (scl_slope); "
                         "it is damaged, export it again")

def _check_length(dataobj, length: int, path):
    "`InputError` unless the voxels of an image reach to the end of its file, which has `length` bytes unpacked."
    expected = dataobj.offset + int(np.prod(dataobj.shape, dtype=object))*dataobj.dtype.itemsize
    if length == expected: return
    problem = f"{length} bytes, but its header describes {expected}"
    remedy = "it is cut off" if length < expected else "it has a damaged header, or another file behind it"
    raise InputError(f"{path}: not a readable NIfTI file ({problem}); {remedy}, copy it again")


# %%
#| export
def _voxels_of(image, path) -> np.ndarray:
    "The voxels of an image. A packed file is read to its end, where the checksum tells of a flipped bit."
    if not str(path).lower().endswith(".gz"):
        _check_length(image.dataobj, os.path.getsize(path), path)
        return np.asanyarray(image.dataobj)
    holder = import_volumes_package("nibabel").FileHolder
    with gzip.open(path) as file:
        unpacked = type(image).from_file_map({"image": holder(fileobj=file)})
        voxels = np.asanyarray(unpacked.dataobj)
        while file.read(1 << 20): pass
        _check_length(unpacked.dataobj, file.tell(), path)
    return voxels

def _open_image(path):
    "The image in a file, whose voxels are not read yet; `None` if it is something else than a NIfTI."
    nib = import_volumes_package("nibabel")
    image = nib.load(os.path.abspath(path))  # or a leading ~ would be somebody's home
    if not isinstance(image, nib.Nifti1Image): return None
    with image.file_map["image"].get_prepare_fileobj("rb") as file:
        _check_scaling(image.header_class.from_fileobj(file, check=False), path)
    return image


# %%
#| export
def _load_image(path):
    "A NIfTI image and its voxels; `InputError` for a file that is damaged or no NIfTI."
    import_volumes_package("nibabel")
    refuse_special(path)
    if not Path(path).is_file():
        problem = "a link that leads nowhere" if Path(path).is_symlink() else "no such file"
        raise InputError(f"{path}: {problem}")
    with reading(path), open(path, "rb"): pass  # nibabel does not tell why not
    try:
        image = _open_image(path)
        voxels = None if image is None else _voxels_of(image, path)
    except InputError: raise
    except Exception as e:  # nibabel, gzip and zlib raise a dozen kinds for a damaged file
        if not isinstance(e, MemoryError):  # which may be a damaged size
            refuse_unread(path, e)
        problem, remedy = _problem(path, e)
        raise InputError(f"{path}: not a readable NIfTI file ({problem}); {remedy}") from None
    if voxels is None:
        raise InputError(f"{path}: not a NIfTI file; expected .nii or .nii.gz")
    return image, voxels


# %%
work = Path(tempfile.mkdtemp())
os.environ["CTSEG_CACHE"] = str(work/"cache")
scan = torso_scans()["oblique, other voxel sizes"]
nib.save(nib.Nifti1Image(scan.hu, scan.affine), work/"scan.nii.gz")
print(_load_image(work/"scan.nii.gz")[0].header.get_zooms())
(work/"text.nii").write_text("not a volume")
test_fail(lambda: _load_image(work/"text.nii"), contains="not a readable NIfTI file")

# %%
#| export
_LEAST_MM, _MOST_MM = .004, 250  # sides of a voxel; what lies beyond was written in metres or micrometres

def _check_affine(image, path):
    "`InputError` for an image of which nobody can say where its voxels lie."
    if not image.header["sform_code"] and not image.header["qform_code"]:
        raise InputError(f"{path}: has no affine (sform and qform codes are 0), "
                         "so left and right cannot be told; export it again with one")
    affine = image.affine
    mm = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9*mm.prod() or not mm.all():
        raise InputError(f"{path}: its affine cannot be inverted; export it again")
    if mm.min() < _LEAST_MM or mm.max() > _MOST_MM:
        sides = " x ".join(f"{side:.3g}" for side in mm)
        raise InputError(f"{path}: voxels of {sides} mm; its affine seems to be in another unit, "
                         "export it in mm")


# %%
homeless = nib.Nifti1Image(scan.hu, None)
homeless.header["sform_code"] = homeless.header["qform_code"] = 0
test_fail(lambda: _check_affine(homeless, "homeless.nii"), contains="left and right cannot be told")


# %%
#| export
def read_nifti(
    path, # `.nii` or `.nii.gz`
    dtype = np.float32, # of the voxels; `None`: as in the file
) -> tuple[np.ndarray, np.ndarray]: # voxels [I,J,K], affine float64 [4,4]
    "Read a 3D NIfTI volume. Raises `InputError` for one that is damaged, not 3D, or has no affine."
    image, voxels = _load_image(path)
    if not voxels.size:
        raise InputError(f"{path}: has no voxels; export it again")
    while voxels.ndim > 3 and voxels.shape[-1] == 1:  # "a series of one volume", as some tools write
        voxels = voxels[..., 0]
    if voxels.ndim != 3:
        shape = "x".join(map(str, voxels.shape))
        raise InputError(f"{path}: {voxels.ndim}D, {shape}; expected one 3D volume, "
                         "split a series into volumes")
    if voxels.dtype.kind not in "iuf":
        raise InputError(f"{path}: voxels of type {voxels.dtype}; expected plain numbers")
    _check_affine(image, path)
    if dtype is not None:
        voxels = np.nan_to_num(voxels.astype(dtype), copy=False, nan=-1024)
    return voxels, image.affine


# %%
hu, affine = read_nifti(work/"scan.nii.gz")
test_eq(hu, scan.hu)
test_close(affine, scan.affine, eps=1e-4)  # NIfTI keeps it in 32 bits
nib.save(nib.Nifti1Image(np.stack([hu]*3, -1), affine), work/"series.nii")
test_fail(lambda: read_nifti(work/"series.nii"), contains="split a series into volumes")


# %% [markdown]
# ## Labels
#
# A label map must lie on the grid of its image and hold whole numbers.

# %%
#| export
def _distance_mm(shape, affine: np.ndarray, other: np.ndarray) -> float:
    "How far apart two affines put the corners of a grid, at most, in mm."
    ends = [(0, n - 1) for n in shape]
    corners = np.array(np.meshgrid(*ends)).reshape(3, -1)
    difference = affine - other
    return np.abs(difference[:3, :3] @ corners + difference[:3, 3:]).max()


# %%
moved = scan.affine + np.diag([0, 0, .05, 0])
print(
    "slices 0.05 mm thicker move a corner by", _distance_mm(scan.hu.shape, moved, scan.affine).round(2), "mm"
)

# %% [markdown]
# Some tools write labels as floating-point numbers, through a scale factor or after resampling. A value within 0.001 of a whole number
# is that number. Any other is named.

# %%
#| export
_ONE_PLACE = .1  # mm by which two affines may differ
_NEARLY = .001  # how far a label may lie from its whole number

def _whole_labels(values: np.ndarray, path) -> np.ndarray:
    "Label values as uint8; `InputError` for one that is no whole number from 0 to 255."
    whole = np.round(values) if values.dtype.kind == "f" else values
    with np.errstate(invalid="ignore"):  # of infinite values, which are odd
        odd = ~(np.abs(values - whole) <= _NEARLY) | (whole < 0) | (whole > 255)
    if odd.any():
        raise InputError(f"{path}: not a label map, it holds {values[odd][0]:g}; "
                         "expected whole numbers from 0 to 255")
    return whole.astype(np.uint8)


# %%
print(_whole_labels(np.array([0, 1.0004, 2.9993]), "labels.nii"))
test_fail(
    lambda: _whole_labels(np.array([0, 1, .5]), "labels.nii"), contains="holds 0.5; expected whole numbers"
)
test_fail(lambda: _whole_labels(np.array([0, 300]), "labels.nii"), contains="holds 300")


# %% [markdown]
# Programs store one and the same grid in different orders: first voxel at the right or at the left, slices first or last. A label map whose axes are
# those of its image in another order or direction is turned to that of the image. Nothing is interpolated.

# %%
#| export
def _turned_to(affine: np.ndarray, labels: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    "Labels and their affine with the axes in the order and direction of another affine, if they can be had so."
    steps = np.linalg.inv(affine[:3, :3]) @ own[:3, :3]  # of the labels, in voxels of the other grid
    whole = steps.round()
    one_each = (np.abs(whole).sum(0) == 1).all() and (np.abs(whole).sum(1) == 1).all()
    if not one_each or np.abs(steps - whole).max() > .01 or (whole == np.eye(3)).all():
        return labels, own
    axes = np.abs(whole).argmax(0)
    signs = whole[axes, np.arange(3)]
    turn = np.column_stack([axes, signs])
    orientations = import_volumes_package("nibabel.orientations")
    moved = own @ orientations.inv_ornt_aff(turn, labels.shape)
    return orientations.apply_orientation(labels, turn), moved


# %%
mirror = np.diag([-1., 1, 1, 1])
mirror[0, 3] = scan.hu.shape[0] - 1
right_to_left = scan.affine @ mirror
turned, moved = _turned_to(scan.affine, scan.labels[::-1], right_to_left)
print(np.array_equal(turned, scan.labels), _distance_mm(turned.shape, moved, scan.affine).round(6))


# %%
#| export
def read_label_map(
    path, # a label map, or the mask of one structure
    shape: tuple[int, int, int], # of its image
    affine: np.ndarray, # float [4,4], of its image
) -> np.ndarray: # uint8 [I,J,K]
    """Read labels.

    Raises `InputError` unless they lie on the grid of their image, in any order of its axes, and are whole
    numbers from 0 to 255, within 0.001.
    """
    labels, own_affine = _turned_to(affine, *read_nifti(path, None))
    if labels.shape != tuple(shape):
        sizes = ["x".join(map(str, s)) for s in (labels.shape, shape)]
        raise InputError(f"{path}: {sizes[0]} voxels, its image has {sizes[1]}; resample it")
    distance = _distance_mm(shape, own_affine, affine)
    if distance > _ONE_PLACE:
        raise InputError(f"{path}: lies up to {distance:.1f} mm from its image (the affines differ); "
                         "resample it onto the image")
    return _whole_labels(labels, path)


# %%
nib.save(nib.Nifti1Image(scan.labels, scan.affine), work/"labels.nii.gz")
test_eq(read_label_map(work/"labels.nii.gz", hu.shape, affine), scan.labels)
test_fail(
    lambda: read_label_map(work/"labels.nii.gz", hu.shape, np.diag([1, 1, -1, 1]) @ affine),
    contains="affines differ",
)
test_fail(lambda: read_label_map(work/"scan.nii.gz", hu.shape, affine), contains="not a label map")

# %% [markdown]
# ## A scan
#
# What is told of a scan that is [plainly not in Hounsfield units](32_scale.ipynb) or a label map in truth holds for imports and for
# `ctseg segment`. A header may also say twice where the voxels lie, and contradict itself: `sform` counts then, and that is told.
# It may give its lengths in metres or micrometres, though the voxels have the size of millimetres: some programs scale by the unit, others ignore it.

# %%
#| export
_OTHER_UNITS = {1: "metres", 3: "micrometres"} # by their code in a header

def _unit_notes(header, path) -> tuple[str, ...]:
    "What to tell of a header whose unit of length is not the millimetre."
    unit = _OTHER_UNITS.get(int(header["xyzt_units"]) & 7)
    return (f"{path}: its header gives lengths in {unit}; they were taken as mm",) if unit else ()

def _affine_notes(header, path) -> tuple[str, ...]:
    "What to tell of a header whose two affines contradict each other."
    if not header["sform_code"] or not header["qform_code"]: return ()
    try: qform = header.get_qform()
    except ValueError:
        return (f"{path}: its qform is no rotation; sform was taken",)
    distance = _distance_mm(header.get_data_shape()[:3], header.get_sform(), qform)
    if distance <= _ONE_PLACE: return ()
    return (f"{path}: its sform and qform differ by up to {distance:.1f} mm; sform was taken",)

def read_scan(path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]: # voxels [I,J,K], affine [4,4], notes
    "A NIfTI scan, and what is to be known of it. Raises `InputError` for a label map, and as `read_nifti` does."
    hu, affine = read_nifti(path)
    check_scan(hu, path)
    header = import_volumes_package("nibabel").load(os.path.abspath(path)).header
    return hu, affine, scale_notes(hu, path) + _unit_notes(header, path) + _affine_notes(header, path)


# %%
print(read_scan(work/"scan.nii.gz")[2])
twice = nib.load(work/"scan.nii.gz")
twice.set_qform(np.diag([-1, 1, 1, 1])@twice.affine, 1)
twice.header.set_xyzt_units("micron")
nib.save(twice, work/"twice.nii.gz")
print([note.split(": ")[1] for note in read_scan(work/"twice.nii.gz")[2]])
(work/"twice.nii.gz").unlink()


# %% [markdown]
# ## A folder of files
#
# A file's name without its ending is the name of its case. nnU-Net appends `_0000` to it, the number of the channel.

# %%
#| export
def case_name(path: Path) -> str:
    "The name of a case, from its NIfTI file."
    name = unicodedata.normalize("NFC", path.name)  # a Mac writes letters with marks in two parts
    return re.sub(r"(_0000)?\.nii(\.gz)?$", "", name, flags=re.IGNORECASE)


# %%
print([case_name(Path(n)) for n in ("p1.nii.gz", "p1_0000.NII", "s0001_0002.nii")])


# %%
#| export
def _is_nifti(path: Path) -> bool:
    "Is this something visible with the ending of a NIfTI? A link to nowhere or a pipe is told by who reads it."
    return not path.is_dir() and is_visible(path) and called_nifti(path)


# %%
print([p.name for p in sorted(work.iterdir()) if _is_nifti(p)])


# %%
#| export
def nifti_files(folder: Path, strict: bool = True) -> dict[str, Path]:
    """The NIfTI files of a folder by case, in natural order.

    Raises `InputError` for two files of one case, unless not `strict`: then both count, by their whole names.
    """
    if not folder.is_dir(): return {}
    cases = {}
    paths = filter(_is_nifti, folder.iterdir())
    for path in sorted(paths, key=lambda p: natural_key(p.name)):
        name = case_name(path)
        if not strict: name = path.name
        if name in cases:
            raise InputError(f"{folder}: {cases[name].name} and {path.name} are the same case; remove one")
        cases[name] = path
    return cases


# %%
print(list(nifti_files(work)))
(work/"two").mkdir()
for ending in (".nii", ".nii.gz"): (work/"two"/f"p1{ending}").touch()
test_fail(lambda: nifti_files(work/"two"), contains="are the same case")


# %% [markdown]
# ## Predictions as NIfTI
#
# A submission, or an array of masks, goes back as one label map a volume, on the original grid. The header is made new; of the
# source's header only the affine is copied. For an unevenly spaced scan NIfTI cannot say where each slice lies. So the array is
# exact, the affine uses the mean step, and the true positions are written beside it.

# %%
#| export
def save_labels(
    labels: np.ndarray, # uint8 [I,J,K]
    affine: np.ndarray, # float [4,4]
    positions, # of the slices, [K,3] in mm, if no affine can express them; else None
    path: Path, # `….nii.gz`
):
    "Write a label map, and beside it as JSON the positions of its slices if they are unevenly spaced."
    nib = import_volumes_package("nibabel")
    image = nib.Nifti1Image(labels, np.array(affine))
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    if positions is not None and len(positions):
        beside = path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")
        write_json({"positions": np.asarray(positions).tolist()}, beside)


# %%
save_labels(scan.labels, scan.affine, None, work/"saved.nii.gz")
test_eq(read_label_map(work/"saved.nii.gz", scan.hu.shape, scan.affine), scan.labels)
save_labels(scan.labels, scan.affine, np.zeros((50, 3)), work/"uneven.nii.gz")
print((work/"saved.json").exists(), (work/"uneven.json").exists())


# %%
#| export
def export_nifti(
    masks, # a submission (CSV), or uint8 [N,H,W] in the order of the images
    folder, # the challenge folder with its `index.json`
    out, # the folder for `v000.nii.gz`, …, new
    split: str = "test", # the images that the masks belong to
) -> dict[str, tuple[int, int]]: # volume → (slices with a prediction, slices of the volume)
    "Put predicted masks back onto the grids of their volumes, as NIfTI label maps."
    import_volumes_package("nibabel")
    out, facts = new_folder(out), {}
    with atomic_path(out, new=True) as tmp:
        tmp.mkdir()
        for volume in predicted_volumes(masks, folder, split):
            entry, path = volume.entry, tmp/f"{volume.id}.nii.gz"
            save_labels(volume.labels, np.array(entry["affine"]), entry["positions"], path)
            axes, _ = slice_axes(np.array(volume.entry["affine"]), volume.entry["orientation"])
            facts[volume.id] = volume.slices, volume.entry["shape"][axes[0]]
        names = Path(folder)/"class_names.json"
        if names.exists(): shutil.copy(names, tmp/"class_names.json")
    return facts


# %%
scans = torso_scans()
write_volumes([Case(n, lambda v=v: v) for n, v in scans.items()], work/"torsos", TORSO_CLASSES, Slicing())
s = read_challenge(work/"torsos")
print(export_nifti(s.masks, work/"torsos", work/"back", "train"))
for path, scan in zip(nifti_files(work/"back").values(), scans.values()):
    test_eq(read_label_map(path, scan.hu.shape, scan.affine), scan.labels)

# %% [markdown]
# Voxel for voxel, for a permuted and an oblique grid alike. With resampling it cannot be exact, but it should be close.

# %%
case = Case("scan", lambda: scan)
write_volumes([case], work/"small", TORSO_CLASSES, Slicing(size=64, spacing="fit"))
export_nifti(read_challenge(work/"small").masks, work/"small", work/"back2", "train")
back = read_label_map(work/"back2"/"v000.nii.gz", scan.hu.shape, scan.affine) == 1
liver = scan.labels == 1
print(
    f"Dice of the liver after 90x110 → 64x64 → 90x110: "
    f"{2*(back & liver).sum()/(back.sum() + liver.sum()):.3f}"
)

# %%
#| hide
shutil.rmtree(work)
