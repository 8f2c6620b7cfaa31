# %% [markdown]
# # Many sources, one folder
#
# > Challenge folders of different classes, numbers and image sizes become one, and what a source never looked for stays unknown.
#
# - skip_showdoc: true

# %%
#| default_exp io.merge

# %%
#| export
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ctseg.core.anatomy import ClassMap
from ctseg.core.atomic import atomic_path
from ctseg.core.errors import InputError, did_you_mean
from ctseg.core.filetypes import check_folder, instead_of
from ctseg.core.json_files import read_json, write_json
from ctseg.core.paths import real_path, refuse_inside, safe_name
from ctseg.core.tables import csv_cell
from ctseg.core.unions import read_union_lists
from ctseg.data.annotations import read_classes
from ctseg.data.challenge import open_challenge, write_challenge
from ctseg.data.images import image_paths, png_header
from ctseg.data.lazy import LazyPixels, row_blocks, take
from ctseg.data.slices import SliceSet, known_after_resize
from ctseg.data.spooled import put_slices, room_for
from ctseg.io.imported import imported_slicing, pixel_spacings
from ctseg.io.index import read_index
from ctseg.io.merge_classes import ClassPlan, match_classes
from ctseg.io.merge_sizes import CommonFrame, SplitFacts, common_frame, framed, scaled_sizes
from ctseg.io.outputs import new_folder, sealed_index
from ctseg.io.renaming import read_renaming

# %%
#| hide
import shutil
import tempfile

from fastcore.test import test_eq, test_fail

from ctseg.core.style import class_legend, image_grid, overlay, show_image
from ctseg.data.challenge import read_challenge
from ctseg.data.toys import toy_set

# %% [markdown]
# `merge` makes one challenge folder of several. On this page there are two clinics, and each has outlined what it needed. Clinic A examined both lungs. Clinic B examined "Lungs" as a
# whole and the heart, with numbers of its own, and its images are smaller. Neither looked for the other's classes.

# %%
work = Path(tempfile.mkdtemp())
os.environ["CTSEG_CACHE"] = str(work/"cache")
toys, truth = toy_set(24, 24, size=48)
right, left, heart = (toys.classes.id(name) for name in ("lung_right", "lung_left", "heart"))

def clinic(name, rows, numbers, names, size=48):
    "A folder in which these classes alone were examined on the slices `rows`; the last two are unlabelled."
    table = np.zeros(256, np.uint8)
    table[list(numbers)] = list(numbers.values())
    masks, known = table[truth[rows]], np.ones((len(rows), len(names)), bool)
    masks[-2:], known[-2:] = 0, False
    edge = slice(0, size)
    s = SliceSet(toys.images[rows][:, edge, edge].copy(), masks[:, edge, edge].copy(), known,
                 groups=np.arange(len(rows))//2, classes=ClassMap.from_names(names))
    write_challenge(s, work/name)
    return work/name

a = clinic("clinic_a", range(12), {left: 1, right: 2}, ["lung_left", "lung_right"])
b = clinic("clinic_b", range(12, 24), {heart: 1, left: 2, right: 2}, ["Heart", "Lungs"], size=40)
for folder in (a, b): print(folder.name, read_json(folder/"class_names.json"))


# %% [markdown]
# ## Sources
#
# A *source* is one of the folders to be merged. It gets a short name for messages.

# %%
#| export
@dataclass
class Source:
    "A challenge folder that is to be merged, before its pixels are read."
    name: str  # unique among the sources
    folder: Path
    classes: ClassMap
    stacks: dict[str, SplitFacts]  # split → how many images of which size


def source_names(folders: list[Path]) -> list[str]:
    "A short name for each folder: its own, with those above it where two are called alike."
    depth, most = 1, max(len(folder.parts) for folder in folders)
    while True:
        names = [safe_name("-".join(folder.parts[-depth:])) for folder in folders]
        if len({name.casefold() for name in names}) == len(names): return names
        if depth > most:
            return [f"{name}-{i}" for i, name in enumerate(names, 1)]
        depth += 1


# %%
print(source_names([Path("/data/north/ct"), Path("/data/south/ct")]))
print(source_names([Path("north"), Path("south")]))


# %%
#| export
def _stack(folder: Path, split: str) -> SplitFacts:
    "Number, size and millimetres of a split's images. All have the size of the first: reading checks it."
    paths = image_paths(folder/f"{split}-images")
    mm = pixel_spacings(folder, split)
    if mm is not None and len(mm) != len(paths):
        raise InputError(f"{folder/'index.json'}: {len(mm)} images of {split}, but {len(paths)} are there; "
                         "import the volumes again")
    return SplitFacts(f"{folder/split}-images", len(paths), png_header(paths[0])[:2], mm)

def _check_folders(folders: list[Path], out: Path):
    "`InputError` for fewer than two folders, for one that is given twice, and for a place inside of one."
    if len(folders) < 2:
        raise InputError(f"{len(folders)} folders to merge, expected two or more")
    seen: dict[Path, Path] = {}
    for folder in folders:
        real = real_path(folder)
        if real in seen:
            raise InputError(f"{folder} and {seen[real]} are one folder; give it once")
        seen[real] = folder
    refuse_inside(out, folders)


# %%
for wrong in ([a], [a, b, a]):
    try: _check_folders(wrong, work/"out")
    except InputError as e: print("-", str(e).replace(str(work), "…"))


# %%
#| export
def find_sources(folders: list[Path]) -> list[Source]:
    "The folders as sources. `InputError` for what is no challenge folder."
    sources = []
    for name, folder in zip(source_names([real_path(folder) for folder in folders]), folders):
        check_folder(folder, "a challenge folder with train-images/")
        if not (folder/"train-images").is_dir():
            hint = instead_of(folder, "train-images")
            raise InputError(f"{folder}: no train-images/ in it{hint}; expected a challenge folder")
        splits = [split for split in ("train", "test") if (folder/f"{split}-images").is_dir()]
        stacks = {split: _stack(folder, split) for split in splits}
        sources.append(Source(name, folder, read_classes(folder), stacks))
    return sources


# %%
sources = find_sources([a, b])
for source in sources: print(source.name, source.classes, source.stacks["train"].size)


# %% [markdown]
# ## Reading one source
#
# Only one source is in memory at a time. Its masks are translated into the merged numbers, and each class it does not have is unknown.

# %%
#| export
def _open(source: Source, split: str, annotated: str | None, spool: Path) -> SliceSet:
    "A split of a source, pixels in files; `annotated` says what zeros mean where `annotated_labels.json` is missing."
    own = (source.folder/"annotated_labels.json").exists()
    how = "json" if own or annotated is None else annotated
    return open_challenge(source.folder, split, how, spool=spool)


def translated(
    s: SliceSet, ids: np.ndarray, sizes: np.ndarray, frame: CommonFrame, classes: ClassMap,
) -> SliceSet:
    "A source's slices in the merged numbers, on the common frame. `InputError` for what a union contradicts."
    known = np.zeros((len(s), len(classes)), bool)
    before = np.zeros_like(known)
    columns = ids[1:1 + len(s.classes)] - 1
    known[:, columns], before[:, columns] = s.known, s.present
    images, masks = framed(s.images, ids[s.masks], sizes, frame)
    known = known_after_resize(known, before, masks)
    return SliceSet(images, masks, known, s.names, s.groups, classes)


# %%
names = {source.name: source.classes for source in sources}
plan = match_classes(names, unions={"lungs": ["lung_left", "lung_right"]})
frame = common_frame([source.stacks["train"] for source in sources], "pad")
of_b = sources[1]
sizes = scaled_sizes(of_b.stacks["train"], frame)
there = _open(of_b, "train", None, work).in_memory()
print(translated(there, plan.ids["clinic_b"], sizes, frame, plan.classes))


# %% [markdown]
# Patient 7 of one clinic is another person than patient 7 of the next. The source becomes part of the patient.

# %%
#| export
def patient_names(source: Source, split: str, s: SliceSet) -> list[str]:
    "Who is on each slice: the source's name and its patient there, or else its group of near-duplicates."
    path = source.folder/"patients.json"
    if not os.path.lexists(path):
        return [f"{source.name}/{split} group {group}" for group in s.groups]
    return [f"{source.name}/{patient}" for patient in read_json(path)[split]]


# %%
print(patient_names(of_b, "train", _open(of_b, "train", None, work).in_memory())[-3:])


# %% [markdown]
# A slice in two sources would be learnt twice, with two opinions. If it is a test slice of one of them, the test would be worth nothing.
# Which of the two is to go is not for us to say.

# %%
#| export
class SeenImages:
    "Images by content, to find one that two sources have."
    def __init__(self):
        self.places: dict[bytes, tuple[str, str]] = {}  # digest → source, place

    def check(self, source: Source, split: str, s: SliceSet):
        "`InputError` for an image that another source has; images of one grey value are nobody's."
        found = []
        for name, image in zip(s.names, s.images):
            if image.min() == image.max(): continue
            here = f"{source.folder/split}-images/{name}"
            content = repr(image.shape).encode() + image.tobytes()
            digest = hashlib.blake2b(content, digest_size=16).digest()
            owner, place = self.places.setdefault(digest, (source.name, here))
            if owner != source.name: found.append((here, place))
        if found:
            more = f" (and {len(found) - 1} more such pairs)" if len(found) > 1 else ""
            raise InputError(f"{found[0][0]} and {found[0][1]} are the same image{more}; "
                             "leave it out of one of the folders")


# %%
seen = SeenImages()
seen.check(sources[0], "train", toys)
test_fail(lambda: seen.check(of_b, "train", toys[[3]]), contains="the same image")


# %% [markdown]
# ## Gathering
#
# The merged arrays are files, looked into as if they were in memory.

# %%
#| export
@dataclass
class Gathered:
    "A split of the merged folder, as it grows."
    images: np.ndarray | LazyPixels  # uint8 [N,H,W]
    masks: np.ndarray | LazyPixels  # uint8 [N,H,W]
    known: np.ndarray  # bool [N,C]
    patients: list[str]
    origins: list[tuple[str, str]]  # source and name there of each image

    @classmethod
    def empty(cls, count: int, size: tuple[int, int], C: int, folder: Path) -> "Gathered":
        "Room for so many images, in files of a folder."
        folder.mkdir(parents=True)
        images, masks = (room_for(count, size, folder) for _ in range(2))
        return cls(images, masks, np.zeros((count, C), bool), [], [])

    def add(self, source: str, s: SliceSet, patients: list[str]):
        "Put the slices of a source behind those that are there."
        rows = slice(len(self.origins), len(self.origins) + len(s))
        put_slices(self.images, rows.start, s.images)
        put_slices(self.masks, rows.start, s.masks)
        self.known[rows] = s.known
        self.patients += patients
        self.origins += [(source, name) for name in s.names]

    def slice_set(self, classes: ClassMap, first: int = 0) -> SliceSet:
        "The images that are there, from number `first` on, as a `SliceSet`, called 0.png, 1.png, …"
        rows = slice(first, len(self.origins))
        groups = np.unique(self.patients[rows], return_inverse=True)[1].astype(np.int64)
        return SliceSet(
            take(self.images, rows), take(self.masks, rows), self.known[rows], None, groups, classes)


# %%
room = Gathered.empty(4, (48, 48), 3, work/"room")
room.add("clinic_a", toys[:4], ["a/0", "a/0", "a/1", "a/1"])
print(room.slice_set(toys.classes))


# %% [markdown]
# Beside the arrays a table grows: which source taught which class, on how many slices.

# %%
#| export
def taught(source: str, split: str, s: SliceSet, plan: ClassPlan) -> Iterator[dict]:
    "A row for each class a source has: how many slices, of how many was it examined, and found."
    for c, name in enumerate(plan.classes.names):
        if source not in plan.labels[name]: continue
        yield {
            "source": source,
            "split": split,
            "class": name,
            "called": plan.labels[name][source],
            "slices": len(s),
            "examined": int(s.known[:, c].sum()),
            "found": int(s.present[:, c].sum()),
        }


def taught_table(rows: list[dict], classes: ClassMap) -> pd.DataFrame:
    "Classes down, sources across: on how many training slices a class was examined (and found)."
    table = pd.DataFrame([row for row in rows if row["split"] == "train"])
    examined, found = table.examined.astype(str), table.found.astype(str)
    table["cell"] = examined + " (" + found + ")"
    wide = table.pivot(index="class", columns="source", values="cell")
    sources = list(dict.fromkeys(table.source))
    return wide.reindex(index=list(classes.names), columns=sources).fillna("")


# %%
slices_of_b = translated(there, plan.ids["clinic_b"], sizes, frame, plan.classes)
print(taught_table(list(taught("clinic_b", "train", slices_of_b, plan)), plan.classes))


# %%
#| export
def framed_parts(
    source: Source, split: str, s: SliceSet, plan: ClassPlan, frame: CommonFrame, seen: SeenImages,
) -> Iterator[tuple[SliceSet, list[str]]]: # some slices, and whose they are
    "A split of a source part by part, in the merged numbers, on the common frame."
    patients = patient_names(source, split, s)
    sizes = scaled_sizes(source.stacks[split], frame)
    largest = np.maximum(s.images.shape[1:], frame.size)
    for rows in row_blocks((len(s), *largest.tolist())):
        part = s[rows].in_memory()
        seen.check(source, split, part)
        try:
            part = translated(part, plan.ids[source.name], sizes[rows], frame, plan.classes)
        except InputError as e:
            raise InputError(f"{source.folder}: {e}") from None
        yield part, [patients[row] for row in rows]


# %%
parts = framed_parts(of_b, "train", _open(of_b, "train", None, work), plan, frame, SeenImages())
print([(len(part), patients[0]) for part, patients in parts])


# %%
#| export
def gather(
    sources: list[Source], plan: ClassPlan, frame: CommonFrame,
    annotated: str | None, # what zeros mean where a source has no `annotated_labels.json`
    folder: Path, # for the arrays, new
) -> tuple[dict[str, Gathered], list[dict]]: # split → its arrays; the rows of `taught`
    "All sources in one array a split; some megabytes of a source are in memory at a time."
    gathered, rows, seen = {}, [], SeenImages()
    for split in ("train", "test"):
        count = sum(source.stacks[split].count for source in sources if split in source.stacks)
        if not count: continue
        gathered[split] = Gathered.empty(count, frame.size, len(plan.classes), folder/split)
    for source in sources:
        for split in source.stacks:
            s = _open(source, split, annotated, folder)
            first = len(gathered[split].origins)
            for part, patients in framed_parts(source, split, s, plan, frame, seen):
                gathered[split].add(source.name, part, patients)
            rows += taught(source.name, split, gathered[split].slice_set(plan.classes, first), plan)
    return gathered, rows


# %%
gathered, rows = gather(sources, plan, frame, None, work/"arrays")
print(gathered["train"].slice_set(plan.classes))
print(taught_table(rows, plan.classes))


# %% [markdown]
# ## The way back to volumes
#
# Where every source was cut from volumes in the same way, the merged folder keeps the index of them all: a run that learns from it cuts
# new scans alike, and predictions find their way back. Of images that were resized, or cut in different ways, no index would be true.

# %%
#| export
def _prefixed_index(source: Source, split: str) -> tuple[dict, dict]:
    "Volumes by id, and where each image lies, by its name; ids begin with the source's name."
    volumes, images = read_index(source.folder, split)
    prefix, lines = source.name, {}
    for name, line in images.items():
        lines[name] = line | {"volume": f"{prefix}-{line['volume']}"}
    entries = {f"{prefix}-{id}": entry for id, entry in volumes.items()}
    return entries, lines


def merged_index(
    sources: list[Source],
    frame: CommonFrame,
    gathered: dict[str, Gathered], # the images by split
) -> dict | None:
    "The index of all volumes, whose names begin with the source's; `None` where there cannot be one."
    ways = [imported_slicing(source.folder) for source in sources]
    if frame.how or None in ways or any(way != ways[0] for way in ways):
        return None
    volumes, lines = {}, {}
    for source in sources:
        for split in source.stacks:
            own_volumes, own_lines = _prefixed_index(source, split)
            volumes |= own_volumes
            lines |= {(source.name, split, name): line for name, line in own_lines.items()}
    images = {}
    for split, one in gathered.items():
        of_split = [lines[source, split, name] for source, name in one.origins]
        images[split] = {f"{i}.png": line for i, line in enumerate(of_split)}
    return sealed_index(volumes, images)


# %%
test_eq(merged_index(sources, frame, {}), None)


# %% [markdown]
# ## Writing
#
# Two tables lie beside the files of a challenge folder. `sources.csv` says which source taught which class, and what it is called there.
# `origins.csv` says where each image came from.

# %%
#| export
def _write_table(rows: list[dict], path: Path):
    "A table without anything that a spreadsheet would carry out."
    pd.DataFrame(rows).map(csv_cell).to_csv(path, index=False)


def _write(
    out: Path,
    gathered: dict[str, Gathered],
    rows: list[dict],
    classes: ClassMap,
    index: dict | None,
):
    "All files of a merged folder."
    origins = []
    for split, one in gathered.items():
        write_challenge(one.slice_set(classes), out, split)
        for i, (source, name) in enumerate(one.origins):
            place = {"split": split, "image": f"{i}.png", "source": source, "called": name}
            origins.append(place)
    patients = {split: one.patients for split, one in gathered.items()}
    write_json(patients, out/"patients.json", indent=None)
    _write_table(rows, out/"sources.csv")
    _write_table(origins, out/"origins.csv")
    if index:
        write_json(index, out/"index.json", indent=None)


# %%
(work/"written").mkdir()
_write(work/"written", gathered, rows, plan.classes, None)
print(*sorted(p.name for p in (work/"written").iterdir()))


# %%
#| export
def planned_classes(sources: list[Source], rename, unions) -> ClassPlan:
    "What all numbers become, with a renaming and unions that may be files."
    table = read_union_lists(unions) if isinstance(unions, (str, Path)) else unions
    names = {source.name: source.classes for source in sources}
    return match_classes(names, read_renaming(rename).table, table)


def unnamed_notes(sources: list[Source]) -> list[str]:
    "A note on each folder whose numbers nobody has given names."
    bare = [source for source in sources if not os.path.lexists(source.folder/"class_names.json")]
    return [f"{source.folder} has no class_names.json: its numbers are taken for the challenge's "
            f"{len(source.classes)} structures" for source in bare]


def _check_word(annotated: str | None):
    "`InputError` for a word about zeros that there is not."
    if annotated not in (None, "all", "present"):
        raise did_you_mean("value of annotated", annotated, ("all", "present"))


def frame_of(sources: list[Source], resize: str | None, size: int | None) -> CommonFrame:
    "The frame that holds all images of all sources."
    stacks = [stack for source in sources for stack in source.stacks.values()]
    return common_frame(stacks, resize, size)


def _check_examined_at_all(rows: list[dict], folders: list[Path]):
    "`InputError` if nobody examined anything."
    if any(row["examined"] for row in rows if row["split"] == "train"): return
    raise InputError(f"nothing was examined on any training slice of {', '.join(map(str, folders))}; "
                     "merge at least one annotated folder")


# %%
plan = planned_classes(sources, None, {"Lungs": ["lung_left", "lung_right"]})
test_fail(lambda: _check_examined_at_all([], [a, b]), contains="nothing was examined")


# %%
#| export
def merge_facts(
    plan: ClassPlan, frame: CommonFrame, gathered: dict[str, Gathered], rows: list[dict],
    sources: list[Source],
) -> dict:
    "What there is to tell of a merge, as plain values: counts, size, and a table of who examined what."
    notes = unnamed_notes(sources) + plan.notes
    facts = {
        "sources": len(sources),
        "classes": len(plan.classes),
        "size": f"{frame.size[0]}x{frame.size[1]}",
    }
    facts |= {split: len(one.origins) for split, one in gathered.items()}
    return facts | {"notes": notes, "table": taught_table(rows, plan.classes)}


# %%
facts = merge_facts(plan, frame, gathered, rows, sources)
print({name: value for name, value in facts.items() if name != "table"})


# %%
#| export
def merge(
    folders, # two or more challenge folders
    out, # the merged folder, new
    rename=None, # {label or source/label: class name}, or the path of such a JSON
    unions=None, # {union: [members]}, or the path of such a JSON
    resize: str | None = None, # spacing, fit or pad
    size: int | None = None, # side of the merged images in pixels
    annotated: str | None = None, # all or present: of folders without annotated_labels.json
) -> dict: # facts, notes, and the table of who taught what
    """Make one challenge folder of several. What a source never looked for stays unknown on its slices.

    Raises `InputError` for contradictions between the sources, before anything is written.
    """
    folders = [Path(folder) for folder in folders]
    out = new_folder(out)
    _check_folders(folders, out)
    _check_word(annotated)
    sources = find_sources(folders)
    plan = planned_classes(sources, rename, unions)
    frame = frame_of(sources, resize, size)
    with atomic_path(out, new=True) as tmp:
        gathered, rows = gather(sources, plan, frame, annotated, tmp.parent/"arrays")
        _check_examined_at_all(rows, folders)
        tmp.mkdir()
        _write(tmp, gathered, rows, plan.classes, merged_index(sources, frame, gathered))
    return merge_facts(plan, frame, gathered, rows, sources)


# %%
facts = merge([a, b], work/"both", unions={"Lungs": ["lung_left", "lung_right"]}, resize="pad")
print(facts.pop("table"))
print(facts)
print(*sorted(p.name for p in (work/"both").iterdir()))
print((work/"both"/"sources.csv").read_text())

# %% [markdown]
# A slice of each clinic. On clinic B's the lungs are one class, and neither lung is denied.

# %%
#| fig-alt: "A slice of each of two clinics: one outlined two lungs, the other lungs as one class"
both = read_challenge(work/"both")
fig, (panels,) = image_grid(1, 2, size=2.6)
for ax, n in zip(panels, (0, 12)):
    examined = ", ".join(name for name, known in zip(both.classes.names, both.known[n]) if known)
    show_image(ax, overlay(both.images[n], both.masks[n], both.classes), f"examined:\n{examined}")
class_legend(fig, both.classes)

# %%
test_eq(both.known[12], [False, False, True, True])
test_eq(len(np.unique(both.groups)), 12)
for wrong in (dict(), dict(unions={"Lungs": ["lung_left", "lung_right"]}), dict(annotated="json")):
    try: merge([a, b], work/"wrong", **wrong)
    except InputError as e: print("-", str(e).replace(str(work), "…"))
test_eq([p.name for p in work.glob("wrong*")], [])
shutil.rmtree(work)
