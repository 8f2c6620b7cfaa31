# %% [markdown]
# # Labels under other names
#
# > A file says which label is which class; every import and the merge read it in one form.

# %%
#| default_exp io.renaming

# %%
#| export
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ctseg.core.anatomy import IGNORE, ClassMap
from ctseg.core.errors import InputError, did_you_mean
from ctseg.core.json_files import read_json
from ctseg.data.lazy import LazyPixels, row_blocks
from ctseg.data.slices import SliceSet
from ctseg.data.spooled import know_values, put_slices, room_for

Pixels = np.ndarray|LazyPixels # uint8 [N,H,W]

# %%
#| hide
from fastcore.test import test_eq, test_fail


# %% [markdown]
# Clinics spell structures in many ways, `Parotid L`, `PAROTID_L`, `Parotis li`. Two of these are one by their spelling. The third is known to be
# the same only to whoever wrote it, and a renaming says so: `{"Parotis li": "parotid_left"}`.
#
# ## Spellings

# %%
#| export
def class_name(label: str) -> str:
    "A structure's name as class names are written: `Parotid L ` → `parotid_l`."
    return re.sub(r"[\W_]+", "_", label.lower()).strip("_")

def same_spelling(label: str) -> str:
    """A label without case and without the kind of separator.

    `Parotid L` and `PAROTID-L` are one, `GTV+` and `GTV-` are two.
    """
    return re.sub(r"(?<=\w)[\s_.,-]+(?=\w)", "_", label.lower().strip(" \t_"))


# %%
test_eq([class_name(n) for n in ("Parotid L ", "Œil-G", "肝脏", "+")], ["parotid_l", "œil_g", "肝脏", ""])
print([same_spelling(n) for n in ("Parotid L", "PAROTID-L", "GTV+", "GTV-")])


# %% [markdown]
# ## A renaming
#
# A line is a label and the name of its class. Where two sources give one label to different things, a line may begin with the name of the challenge
# folder that its source is, or becomes: `{"clinic_b/vessel": "liver_vessels"}`.

# %%
#| export
class _Lines:
    "Some lines of a renaming."
    def __init__(self, table: dict[str, str]):
        self.table = table
        self._exact = {label.strip(): name for label, name in table.items()}
        self._spelled = {same_spelling(label): name for label, name in table.items()}

    def find(self, label: str) -> tuple[str, bool]|None:
        "The class name of a label, and whether a line has this very label; `None` if no line speaks of it."
        stripped, spelled = label.strip(), same_spelling(label)
        if stripped in self._exact:
            return self._exact[stripped], True
        if spelled in self._spelled:
            return self._spelled[spelled], True
        written = class_name(label)
        if written in self.table:
            return self.table[written], False
        return None

    def about(self, label: str) -> list[str]:
        "The lines about a label."
        if self.find(label) is None:
            return []
        written = class_name(label)
        spelled = same_spelling(label)
        return [line for line in self.table if line == written or same_spelling(line) == spelled]


# %%
#| export
class _SourceLines:
    "The lines of a renaming for one source."
    def __init__(
        self,
        rename: dict[str, str]|None = None,
        source: str = "", # name of the folder: its own lines, `source/label`, go first
        where: str = "rename", # what a message calls the table
    ):
        self.table = rename or {}
        self.source = source
        self.where = where
        prefix = f"{source}/"
        named = [line for line in self.table if source and line.startswith(prefix)]
        own = {line.removeprefix(prefix): self.table[line] for line in named}
        self._own = _Lines(own)
        self._all = _Lines(self.table)

    @property
    def lines(self) -> list[tuple[str, str]]:
        "What it says for this source, sorted: the same lines make the same names."
        both = self._all.table | self._own.table
        return sorted(both.items())

    def find(self, label: str) -> tuple[str, bool]|None:
        "The class name of a label, and whether a line has this very label; `None` if no line speaks of it."
        return self._own.find(label) or self._all.find(label)


# %%
#| export
class Renaming(_SourceLines):
    "Labels of a clinic as class names."
    def translate(self, label: str) -> tuple[str, bool]:
        "The class name of a label, written as class names are, and whether the table names this label."
        return self.find(label) or (class_name(label), False)

    def name(self, label: str) -> str:
        "The class name of a label."
        return self.translate(label)[0]

    def kept(self, label: str) -> str:
        "The class name of a label; the label itself where no line speaks of it."
        found = self.find(label)
        return found[0] if found else label

    def names(self, label: str) -> bool:
        "Does a line have this very label?"
        found = self.find(label)
        return bool(found) and found[1]

    def used(self, labels: Iterable[str]) -> set[str]:
        "The lines that rename one of these labels."
        found: set[str] = set()
        for label in labels:
            lines = [f"{self.source}/{line}" for line in self._own.about(label)]
            found.update(lines or self._all.about(label))
        return found


# %%
test_eq(Renaming({"PAROTID_L": "parotid_left"}).translate("Parotid L"), ("parotid_left", True))
test_eq(Renaming({"GTV+": "tumour"}).translate("GTV-"), ("gtv", False))
rename = {"CT-Liver": "liver", "clinic_b/vessel": "liver_vessels"}
for source in ("clinic_a", "clinic_b"):
    renaming = Renaming(rename, source)
    labels = ["ct liver", "vessel", "Spleen"]
    print(source, [renaming.kept(label) for label in labels], sorted(renaming.used(labels)))

# %%
#| export
NO_CLASSES = ("background", "ignore", "unknown")  # what a mask says without a class

def read_renaming(rename, source: str = "") -> Renaming:
    """A renaming from a dictionary or the path of a JSON; `None`: none.

    Raises `InputError` unless it maps texts to texts.
    """
    if rename is None: return Renaming()
    table, where = rename, "rename"
    if not isinstance(rename, dict):
        table, where = read_json(rename), str(rename)
    texts: list = [None]
    if isinstance(table, dict):
        texts = [*table, *table.values()]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        example = '{"Parotis li": "parotid_left"}'
        raise InputError(f"{where}: expected an object from labels to class names, such as {example}")
    for label, name in table.items():
        if same_spelling(name) in NO_CLASSES:
            raise InputError(f"{where}: {label!r} would become {name!r}, which is no class; "
                             "give it a name of its own, and leave the class out later")
    return Renaming(table, source, where)


# %%
test_fail(lambda: read_renaming({"Parotis li": 3}), contains="from labels to class names")
test_fail(lambda: read_renaming({"Couch": "Background"}), contains="is no class")
test_eq(read_renaming(None).kept("Parotis li"), "Parotis li")


# %% [markdown]
# One table may serve all folders of a clinic, so a line that this one has no use for is a fact to tell and no error. That none of them is of use
# is one.

# %%
#| export
def unused_lines(renaming: Renaming, labels: Iterable[str]) -> dict[str, list[str]]:
    "A fact: the lines that rename none of the labels of a source. `InputError` if that is true of all lines."
    if not renaming.table: return {}
    labels = sorted(set(labels))
    used = renaming.used(labels)
    unused = [line for line in renaming.table if line not in used]
    if labels and not used:
        nearest = did_you_mean("label", unused[0], labels)
        raise InputError(f"{renaming.where}: renames nothing that is there: {nearest}")
    return {"unused_renames": unused}


# %%
print(unused_lines(Renaming(rename), ["CT-Liver", "Spleen"]))
test_fail(lambda: unused_lines(Renaming(rename), ["ct-livr"]), contains="renames nothing")


# %% [markdown]
# ## Classes that have numbers already
#
# A label map, a folder of masks and a table of codes have a list of classes, and their pixels hold its numbers. Renaming makes a new list. Two labels
# may become one class, if the renaming names both. Such a class was examined where all its parts were: an upper lobe alone is no lung.

# %%
#| export
def check_joined(labels: Iterable[str], renaming: Renaming, where: str):
    "`InputError` if a label becomes the class of another one, and the renaming does not name both."
    owner: dict[str, str] = {}
    for label in labels:
        name = renaming.kept(label).strip()
        other = owner.setdefault(name, label)
        both_named = renaming.names(other) and renaming.names(label)
        if other == label or both_named:
            continue
        raise InputError(f"{where}: {other!r} and {label!r} would both become the class {name!r}; "
                         "name both by rename (--rename) if they are one")


# %%
#| export
@dataclass(frozen=True)
class RenamedClasses:
    "The classes of a source under new names."
    old: ClassMap
    classes: ClassMap # the new ones
    ids: np.ndarray # uint8 [C]: the new id of each old class
    any_part: bool = False # a class is known where any of its parts is, and not only where all are

    def old_ids(self, id: int) -> list[int]:
        "The old ids of a new class."
        return (np.flatnonzero(self.ids == id) + 1).tolist()

    def known(self, known: np.ndarray) -> np.ndarray: # bool [N,C'] for bool [N,C]
        "What is known of the new classes."
        columns = []
        for id in range(1, len(self.classes) + 1):
            parts = known[:, self.ids == id]
            columns.append(parts.any(1) if self.any_part else parts.all(1))
        return np.stack(columns, 1)


# %%
#| export
class RenamedSlices(RenamedClasses):
    "What becomes of masks."
    def mask(self, mask: np.ndarray, known: np.ndarray) -> np.ndarray: # uint8 [H,W]
        "A mask in the new numbers; what is of a class that is not `known` there, bool [C'], is erased."
        table = np.zeros(256, np.uint8)
        table[1:len(self.ids) + 1] = np.where(known[self.ids - 1], self.ids, 0)
        table[IGNORE] = IGNORE
        return table[mask]

    def apply(self, masks: Pixels, known: np.ndarray, room: Pixels|None = None) -> np.ndarray: # bool [N,C']
        """Renumber masks uint8 [N,H,W], on which bool [N,C] was examined; what is known then.

        The new masks are put into `room` (see `room_for`); `None`: in place of the old ones."""
        after, room = self.known(known), masks if room is None else room
        for rows in row_blocks(masks.shape):
            first, last = rows[0], rows[-1] + 1
            pairs = zip(np.asarray(masks[first:last]), after[first:last])
            put_slices(room, first, np.stack([self.mask(mask, known) for mask, known in pairs]))
        return after

    def parts_alone(self, known: np.ndarray) -> int:
        "In how many cells of `known`, bool [N,C] of the source, a class was examined in part only, and so stays unknown."
        some = replace(self, any_part=True).known(known)
        return int((some & ~self.known(known)).sum())


# %%
#| export
def renamed_classes(old: ClassMap, renaming: Renaming, any_part: bool = False) -> RenamedSlices:
    "The classes under the names that a renaming gives them. `InputError` for two that become one by accident."
    names = [renaming.kept(name).strip() for name in old.names]
    check_joined(old.names, renaming, renaming.where)
    if names == list(old.names):
        return RenamedSlices(old, old, np.arange(1, len(old) + 1, dtype=np.uint8))
    unions = {}
    for union, members in old.union_table.items():
        unions[renaming.kept(union).strip()] = [renaming.kept(member).strip() for member in members]
    try:
        new = ClassMap.from_names(dict.fromkeys(names), unions)
    except InputError as e:
        raise InputError(f"{renaming.where}: {e}") from None
    ids = np.array([new.id(name) for name in names], np.uint8)
    return RenamedSlices(old, new, ids, any_part)


# %%
lobes = ClassMap.from_names(["upper lobe", "liver", "lower lobe"])
renaming = Renaming({"upper lobe": "lung", "lower lobe": "lung"})
found = renamed_classes(lobes, renaming)
masks = np.array([[[1, 2, 3, 255]]]*2, np.uint8)
known = np.array([[True, True, True], [True, True, False]])
masks[1, masks[1] == 3] = 0
print("alone:", found.parts_alone(known), "| known:", found.apply(masks, known).tolist(), "|", masks.tolist())
test_eq(found.classes.names, ("lung", "liver"))
test_eq(masks, np.array([[[1, 2, 1, 255]], [[0, 2, 0, 255]]]))
test_fail(lambda: renamed_classes(lobes, Renaming({"upper lobe": "liver"})), contains="both become")


# %%
#| export
def told_alone(cells: int) -> dict[str, int]:
    "A fact: in how many cells a class was examined in part only, if there are any."
    return {"parts_alone": cells} if cells else {}


# %%
#| export
def with_new_names(slices: SliceSet, renaming: Renaming, any_part: bool = False) -> tuple[SliceSet, dict]:
    "Slices whose classes are called as a renaming says, and facts about that."
    if not renaming.table: return slices, {}
    facts = unused_lines(renaming, slices.classes.names)
    renamed = renamed_classes(slices.classes, renaming, any_part)
    facts |= told_alone(renamed.parts_alone(slices.known))
    in_memory = isinstance(slices.masks, np.ndarray)
    masks = room_for(len(slices), slices.masks.shape[1:], None if in_memory else Path(tempfile.gettempdir()))
    known = renamed.apply(slices.masks, slices.known, masks)
    if isinstance(masks, LazyPixels): know_values(masks.source)
    return replace(slices, masks=masks, known=known, classes=renamed.classes), facts


# %%
black, masks = np.zeros((1, 2, 2), np.uint8), np.uint8([[[1, 2], [3, 0]]])
slices = SliceSet(black, masks, "all", ["a.png"], classes=lobes)
new, facts = with_new_names(slices, Renaming({"upper lobe": "lung", "lower lobe": "lung", "milt": "spleen"}))
print(new.classes.names, new.masks.tolist(), new.known.tolist(), facts)
