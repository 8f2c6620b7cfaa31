# %% [markdown]
# # Cutting many volumes
#
# > Volumes are cut in several processes; what is cut is kept, so that an import that was stopped goes on.

# %%
#| default_exp io.cutting

# %%
#| export
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field, fields
from hashlib import sha256
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ctseg import __version__
from ctseg.core.anatomy import IGNORE, ClassMap
from ctseg.core.atomic import atomic_path
from ctseg.core.errors import InputError
from ctseg.core.folders import alone_in, made_folder
from ctseg.core.schema import check_whole
from ctseg.core.threads import allowed_cpus
from ctseg.data.slices import known_after_resize, present_classes
from ctseg.io.cases import Case
from ctseg.io.geometry import as_slices, slice_axes
from ctseg.io.slicing import Slicing
from ctseg.io.volumes import Volume, VolumeSlices, cut

# %%
#| hide
import tempfile
from dataclasses import replace

from fastcore.test import test_eq, test_fail

from ctseg.io.toy_scans import TORSO_CLASSES, torso_scans
from ctseg.io.volumes import class_flags


# %% [markdown]
# A volume is loaded, cut into slices, and let go. What is to be said of it later is noted before its slices have a place: its shape, the affine,
# the orientation.

# %%
#| export
def index_entry(volume: Volume, slicing: Slicing, patient: int) -> dict:
    "What the index says of a volume, before its slices have a place."
    positions = None if volume.positions is None else volume.positions.tolist()
    return {
        "kind": volume.kind,
        "patient": patient,
        "shape": list(volume.hu.shape),
        "affine": np.asarray(volume.affine).tolist(),
        "orientation": slicing.orientation,
        "positions": positions,
        "digest": volume.digest,
    }


# %%
work = Path(tempfile.mkdtemp())
scans = torso_scans()
print(index_entry(scans["as NIfTI likes it"], Slicing(), patient=0))


# %% [markdown]
# ## What is known of a volume, and of its slices
#
# A label whose class was not examined would be a contradiction; whoever made the labels is told.

# %%
#| export
def known_classes(
    volume: Volume,
    C: int, # number of classes
    where: str, # what a message calls the volume
) -> np.ndarray: # bool [C]
    """The classes known of a volume.

    Raises `InputError` for labels of a class that does not exist or was not examined.
    """
    if volume.labels is None: return np.zeros(C, bool)
    # a histogram would widen all voxels to 8 bytes
    present = present_classes(volume.labels, IGNORE - 1).any(0)
    if present[C:].any():
        highest = int(np.flatnonzero(present).max()) + 1
        raise InputError(f"{where}: the label map holds {highest}, but there are {C} classes")
    if volume.known is None: return present[:C]
    unexamined = present[:C] & ~volume.known
    if unexamined.any():
        raise InputError(f"{where}: labels of class {int(unexamined.argmax()) + 1}, "
                         "which is not among the classes examined on it; add it there or remove them")
    return volume.known


# %%
scan = scans["as NIfTI likes it"]
print(known_classes(scan, 5, "scan"), known_classes(replace(scan, labels=None), 5, "scan"))
test_fail(lambda: known_classes(scan, 4, "scan"), contains="holds 5, but there are 4 classes")
test_fail(
    lambda: known_classes(replace(scan, known=class_flags([1], 5)), 5, "scan"), contains="labels of class 2"
)


# %% [markdown]
# Some structures are nothing but the union of others, such as `lungs` of both sides. On a slice where nothing is left of them they are
# *not absent*, though one number a pixel cannot show them. Such a cell is written as unknown and counted in `hidden_cells`. So is a
# structure of which a coarser grid has left no pixel, and a slice between two contours that has none itself
# ([RTSTRUCT](74_rtstruct.ipynb)). What lies outside of a cropped picture, however, is truly not on it.

# %%
#| export
def _drawn_on_slices(volume: Volume, part: VolumeSlices, C: int, orientation: str) -> np.ndarray:
    "What was drawn on each slice of a part, before one structure hid another, bool [n,C]."
    if volume.drawn is None:
        labels = as_slices(volume.labels, volume.affine, orientation)
        return present_classes(labels[part.slices], C)
    axes, flips = slice_axes(volume.affine, orientation)
    along = volume.drawn[axes[0]][1:C + 1]
    if flips[0]: along = along[:, ::-1]
    return along[:, part.slices].T


# %%
part = cut(scan, Slicing(every=13))
print(_drawn_on_slices(scan, part, 5, "SPL").astype(int))


# %%
#| export
def known_by_slice(
    volume: Volume,
    known: np.ndarray, # bool [C], of the volume
    part: VolumeSlices,
    slicing: Slicing,
) -> np.ndarray: # bool [n,C]
    "What is known on each slice: `known`, without what other structures or a coarser grid have hidden."
    repeated = np.repeat(known[None], len(part.slices), 0)
    if volume.labels is None: return repeated
    drawn = _drawn_on_slices(volume, part, len(known), slicing.orientation)
    return known_after_resize(repeated, drawn, part.masks)


# %%
coarse = Slicing(size=8, spacing="fit", every=4)
part = cut(scan, coarse)
known = known_by_slice(scan, scan.known, part, coarse)
print("unknown on each slice:", (~known).sum(1))
print(
    {
        int(z): [TORSO_CLASSES.names[c] for c in np.flatnonzero(~k)]
        for z, k in zip(part.slices, known)
        if not k.all()
    }
)


# %%
#| export
@dataclass
class CutFacts:
    "What is told of a case whose n slices are cut."
    known: np.ndarray # bool [n,C]
    known_of_case: np.ndarray # bool [C]
    entry: dict # of the index
    hidden_cells: int # (slice, class) cells that are unknown because something hides them
    overlap: int # voxels that two structures claim
    notes: list[str] # what whoever imports it should know

@dataclass
class CutCase(CutFacts):
    "The same with the slices."
    part: VolumeSlices


# %%
#| export
def cut_case(case: Case, classes: ClassMap, slicing: Slicing) -> CutCase:
    "Load a volume, cut it, and let it go; `case.known` is set. Raises `InputError` for contradictory labels."
    volume = case.load()
    try: part = cut(volume, slicing, case.id)
    except InputError as problem: raise InputError(f"{case.called}: {problem}") from None
    case.known = known_classes(volume, len(classes), case.called)
    known = known_by_slice(volume, case.known, part, slicing)
    hidden = int((case.known & ~known).sum())
    entry = index_entry(volume, slicing, case.patient)
    return CutCase(known, case.known, entry, hidden, volume.overlap, list(volume.notes), part)


# %%
case = Case("scan", lambda: scan, patient=0, id="v000")
cutting = cut_case(case, TORSO_CLASSES, Slicing(every=8))
print(cutting.part.images.shape, "known:", cutting.known.sum(0), "hidden:", cutting.hidden_cells)



# %% [markdown]
# ## What is cut is kept
#
# An import of a thousand volumes takes hours, and their slices fill more memory than there is. So each volume's slices go into a file as soon as
# they are cut. The file says of what it was made: of which files, with which settings, by which version. The same import, started again, finds
# it and goes on; any other makes it anew.

# %%
#| export
def file_stamp(paths) -> str:
    "A text that changes when one of these files does: their names, sizes and times."
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in map(Path, paths)]
    return sha256(json.dumps(stats).encode()).hexdigest()

def _fingerprint(case: Case, classes: ClassMap, slicing: Slicing) -> str:
    "A text that tells whether a part was made by this very import."
    patient = case.patient, case.split, case.id
    made_of = __version__, case.stamp, patient, asdict(slicing), classes.names, str(case.known)
    return sha256(json.dumps(made_of, default=str).encode()).hexdigest()


# %%
test_eq(_fingerprint(case, TORSO_CLASSES, Slicing()), _fingerprint(case, TORSO_CLASSES, Slicing()))
assert _fingerprint(case, TORSO_CLASSES, Slicing()) != _fingerprint(case, TORSO_CLASSES, Slicing(every=2))

# %%
#| export
_ARRAYS = ("images", "masks", "slices", "centres")  # of the slices
_KNOWN = ("known", "known_of_case")  # arrays too; the other facts are plain values
_FACTS = ("entry", "notes", "hidden_cells", "overlap")

def save_cut(cutting: CutCase, path: Path, fingerprint: str):
    "Write a cut volume into a file, whole or not at all."
    record = {name: getattr(cutting, name) for name in _FACTS}
    record |= dict(fingerprint=fingerprint, windows=cutting.part.windows)
    arrays = {name: getattr(cutting.part, name) for name in _ARRAYS}
    arrays |= {name: getattr(cutting, name) for name in _KNOWN}
    arrays["told"] = np.array(json.dumps(record))
    with atomic_path(path) as tmp, open(tmp, "wb") as f:
        np.savez_compressed(f, **arrays)


# %%
#| export
def load_cut(path: Path) -> tuple[CutCase, str]:
    "A cut volume from its file, and the fingerprint of the import that made it."
    with np.load(path) as file: arrays = dict(file)
    record = json.loads(str(arrays["told"]))
    windows = [tuple(window) for window in record["windows"]]
    part = VolumeSlices(arrays["images"], arrays["masks"], arrays["slices"], windows, arrays["centres"])
    facts = {name: record[name] for name in _FACTS} | {name: arrays[name] for name in _KNOWN}
    return CutCase(**facts, part=part), record["fingerprint"]


# %%
save_cut(cutting, work/"v000.npz", "made of these")
back, fingerprint = load_cut(work/"v000.npz")
test_eq(back.part.images, cutting.part.images)
test_eq((back.entry, back.part.windows, fingerprint), (cutting.entry, cutting.part.windows, "made of these"))


# %% [markdown]
# In memory only a few numbers of each volume are kept.

# %%
#| export
@dataclass
class CutFile(CutFacts):
    "The same with the slices in a file."
    path: Path
    shape: tuple[int, int, int] # slices, height, width
    case: Case|None = None

    def load(self) -> CutCase:
        "The slices."
        return load_cut(self.path)[0]

def _as_file(path: Path, cutting: CutCase) -> CutFile:
    "What is kept in memory of a cut volume."
    facts = {f.name: getattr(cutting, f.name) for f in fields(CutFacts)}
    return CutFile(**facts, path=path, shape=cutting.part.images.shape)


# %%
print(_as_file(work/"v000.npz", back).shape)


# %%
#| export
def _find_cut(case: Case, path: Path, fingerprint: str) -> CutFile|None:
    "A part that this very import has made before; `None` if there is none."
    if not case.stamp or not path.exists(): return None
    try: cutting, made_of = load_cut(path)
    except Exception: return None  # whatever is wrong with it, it is cut anew
    return _as_file(path, cutting) if made_of == fingerprint else None

def _cut_to_file(case: Case, classes: ClassMap, slicing: Slicing, path: Path) -> CutFile:
    "Cut a case into a file, unless this import has done so before."
    fingerprint = _fingerprint(case, classes, slicing)
    before = _find_cut(case, path, fingerprint)
    if before: return before
    cutting = cut_case(case, classes, slicing)
    save_cut(cutting, path, fingerprint)
    return _as_file(path, cutting)


# %%
stamped = replace(case, stamp="files as they are now", known=None)
print(_find_cut(stamped, work/"v001.npz", _fingerprint(stamped, TORSO_CLASSES, Slicing())))
one = _cut_to_file(stamped, TORSO_CLASSES, Slicing(every=8), work/"v001.npz")
test_eq(one.load().part.images, cutting.part.images)


# %% [markdown]
# ## Several processes
#
# Cutting is mostly reading and decompressing, one volume after the other, so as many processes as there are processors share it. Each starts
# afresh and takes seconds for that, so a handful of volumes is cut by one. The result does not depend on their number.

# %%
#| export
@dataclass
class Work:
    "How an import is carried out."
    workers: int|None = 1 # processes that cut volumes; `None`: as many as there are free processors
    skip_damaged: bool = False # leave out what is damaged, and list it among the facts
    progress: bool = False # show a bar in a terminal, and one line elsewhere
    store: bool = False # write a store, not a challenge folder
    left_out: list[str] = field(default_factory=list) # what was left out so far, in words

    def __post_init__(self):
        if self.workers is not None: check_whole("workers", self.workers)

    def processes(self, n: int) -> int:
        "How many processes cut n volumes."
        if self.workers is not None: return min(self.workers, n)
        return max(1, min(len(allowed_cpus()), n//_LEAST))

_LEAST = 4  # volumes that a process must have to be worth its start

# %%
print([Work(None).processes(n) for n in (1, 3)], Work(3).processes(100))
test_fail(lambda: Work(0), contains="expected a whole number from 1")


# %%
#| export
def _one_thread():
    "In a process of several: one thread each."
    torch.set_num_threads(1)

def _context():
    "How processes start: from a clean one that has loaded the package, where there is such a thing."
    method = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
    context = get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["ctseg.io.cutting"])
    return context

def _results(jobs: list[tuple], processes: int) -> Iterator:
    "For each job (arguments of `_cut_to_file`) a function that gives its result or raises its error."
    if processes == 1:
        for job in jobs: yield lambda job=job: _cut_to_file(*job)
        return
    with ProcessPoolExecutor(processes, _context(), _one_thread) as pool:
        try: yield from [pool.submit(_cut_to_file, *job).result for job in jobs]
        finally: pool.shutdown(cancel_futures=True)


# %%
#| export
def _bar(n: int, work: Work, processes: int):
    "A progress bar in a terminal, one line elsewhere, or nothing."
    bar = tqdm(total=n, desc="import", unit="volume", disable=None if work.progress else True)
    if work.progress and bar.disable:
        tqdm.write(f"cutting {n} volumes with {processes} process{'es' if processes > 1 else ''}")
    return bar


# %%
#| export
def _cut_all(cases: list[Case], folder: Path, work: Work, *how) -> list[CutFile]:
    "See `cut_cases`; `how`: the classes and the slicing."
    done, processes = [], work.processes(len(cases))
    jobs = [(case, *how, folder/f"{case.id}.npz") for case in cases]
    with ExitStack() as stack:
        bar = stack.enter_context(_bar(len(jobs), work, processes))
        for case, result in zip(cases, stack.enter_context(closing(_results(jobs, processes)))):
            try: one = result()
            except InputError as problem:
                if not work.skip_damaged: raise
                work.left_out.append(str(problem))
            else:
                case.known, one.case = one.known_of_case, case
                done.append(one)
            bar.update()
    return done


# %%
#| export
_MARK = "made by ctseg import.txt"
_MARK_TEXT = "Volumes cut by an unfinished import. The same import goes on from here. Safe to delete.\n"

_LONGEST_NAME = 240  # bytes, of the 255 that disks take

def parts_folder(out: Path) -> Path:
    "Where the parts of an unfinished import are kept, beside its folder. `InputError` if that is taken."
    name = out.name if len(os.fsencode(out.name)) <= _LONGEST_NAME else f"{zlib.crc32(os.fsencode(out)):08x}"
    folder = out.with_name(f"{name}.parts")
    if folder.exists() and not (folder/_MARK).exists():
        raise InputError(f"{folder}: is in the way, parts of the import would go there; "
                         f"choose another name than {out.name}")
    return folder


# %%
print(parts_folder(work/"out").name)
(work/"taken.parts").mkdir()
test_fail(lambda: parts_folder(work/"taken"), contains="is in the way")


# %%
#| export
@contextmanager
def held_parts(out: Path) -> Iterator[Path]:
    "The folder of parts, made and held within the block: a second import into `out` would mix its parts with these."
    folder = parts_folder(out)
    with alone_in(folder, out):
        (folder/_MARK).write_text(_MARK_TEXT)
        yield folder


# %%
#| export
def _cut_into(folder: Path, cases: list[Case], out: Path, classes: ClassMap, slicing: Slicing, work: Work):
    "`cut_cases`, with the folder of parts that is there."
    (folder/_MARK).write_text(_MARK_TEXT)
    try: return _cut_all(cases, folder, work, classes, slicing)
    except BrokenProcessPool:
        raise InputError(f"{out}: a process ended unexpectedly, mostly for lack of memory; "
                         "try fewer workers (--workers 1), the import goes on where it was") from None
    except InputError as problem:
        kept = len(list(folder.glob("*.npz")))
        if not kept or not any(case.stamp for case in cases):
            shutil.rmtree(folder)
            raise
        raise InputError(f"{problem} (or choose skip_damaged, --skip-damaged; "
                         f"{kept} volumes are cut already and kept in {folder.name})") from None



# %%
#| export
def cut_cases(cases: list[Case], out: Path, classes: ClassMap, slicing: Slicing, work: Work) -> list[CutFile]:
    """Cut each case into a file in the folder of parts; what the same import has cut before is kept.

    Raises `InputError` for damaged volumes or contradictory labels, unless they are to be left out.
    """
    folder = parts_folder(out)
    with made_folder(folder):
        return _cut_into(folder, cases, out, classes, slicing, work)


# %% [markdown]
# The second scan is damaged. With `skip_damaged` the others are cut, in two processes or in one.

# %%
def damaged(): raise InputError("scan 1: not a readable file")
def cases():
    return [Case(f"scan {i}", damaged if i == 1 else lambda: scan, patient=i, id=f"v00{i}") for i in range(3)]
test_fail(
    lambda: cut_cases(cases(), work/"out", TORSO_CLASSES, Slicing(every=8), Work()),
    contains="not a readable file",
)
careful = Work(skip_damaged=True)
done = cut_cases(cases(), work/"out", TORSO_CLASSES, Slicing(every=8), careful)
print([one.path.name for one in done], careful.left_out)
shutil.rmtree(work)
