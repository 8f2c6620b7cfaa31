# %% [markdown]
# # Classes of several sources
#
# > Three hospitals number and spell their structures differently. Which of them are the same class?
#
# - skip_showdoc: true

# %%
#| default_exp io.merge_classes

# %%
#| export
import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ctseg.core.anatomy import IGNORE, ClassMap, other_side, side_word
from ctseg.core.errors import InputError, did_you_mean, some_of
from ctseg.core.unions import atoms_of, related_pairs, union_ids
from ctseg.io.renaming import Renaming, same_spelling
from ctseg.io.snomed import plain_name, snomed
from ctseg.io.totalsegmentator import total_parts

# %%
#| hide
from fastcore.test import test_eq, test_fail


# %% [markdown]
# Number 1 is a liver in one folder and a pancreas in the next. So numbers say nothing, and names must be compared. Two names are one class
# if [SNOMED CT's table](75_snomed.ipynb) has them for the same structure on the same side, or else if they are spelled alike.
#
# ## What a name means

# %%
#| export
class Meaning(NamedTuple):
    "What a class name stands for. Names of one meaning are one class."
    structure: tuple[str, ...]  # codes of SNOMED CT; of a name that the table lacks, its spelling
    side: str = ""              # left, right or ""

    def on(self, side: str) -> "Meaning":
        "The same structure on another side."
        return self._replace(side=side)


def meaning(name: str) -> Meaning:
    "What a class name means, in any of the usual spellings."
    codes = snomed(name)
    if codes.structure:
        region = codes.region.code if codes.region else ""
        side = codes.side.meaning.lower() if codes.side else ""
        return Meaning((codes.structure.code, region, codes.category.code), side)
    spelled = same_spelling(name)
    words = spelled.split("_")
    word = side_word(spelled)
    if word not in words: return Meaning((spelled,))
    words.remove(word)
    structure = "_".join(words)
    side = "left" if word[0] == "l" else "right"
    return Meaning((structure,), side)


# %%
for names in (
    ["kidney_left", "Kidney_L", "Lt Kidney"],
    ["Aorta", "A_Aorta"],
    ["GTV node L", "gtv-node_left"],
):
    print(" = ".join(names))
    test_eq(len({meaning(name) for name in names}), 1)
for a, b in (
    ("kidney_left", "kidney_right"),
    ("GTV+", "GTV-"),
    ("liver", "liver_tumor"),
    ("CT-Liver", "liver"),
):
    print(a, "≠", b)
    assert meaning(a) != meaning(b)

# %% [markdown]
# No table can know all spellings: that `CT-Liver` is a liver, or that this clinic's `vessel` is a vessel of the liver. A renaming says so, in the
# [form that every import has](44_renaming.ipynb): `{"CT-Liver": "liver"}`. Where two sources give the same name to different things, a
# label may name its source: `{"clinic_b/vessel": "liver_vessels"}`.

# %%
rename = {"CT-Liver": "liver", "clinic_b/vessel": "liver_vessels"}
for source in ("clinic_a", "clinic_b"):
    renaming = Renaming(rename, source)
    print(source, [renaming.kept(label) for label in ("ct liver", "vessel", "Spleen")])


# %% [markdown]
# ## One list of classes
#
# The first folder that has a class gives it its name. A mirror image is spelled after the side that came first, since
# [mirroring](../core/40_anatomy.ipynb) finds partners by their names.

# %%
#| export
def _spelled_after(partner: str|None, name: str) -> str:
    "A new name, spelled after that of its mirror image, if this is there and would not be found otherwise."
    mirrored = other_side(partner) if partner else ""
    if not mirrored: return name
    found_by_name = mirrored.lower() == name.lower()
    return name if found_by_name else mirrored


# %%
print(_spelled_after("kidney_left", "Kidney R"), _spelled_after(None, "Kidney R"))


# %%
#| export
@dataclass
class MergedNames:
    "The classes of all sources, as far as they were read."
    named: dict[Meaning, str] = field(default_factory=dict)
    owners: dict[str, dict[str, str]] = field(default_factory=dict)  # class → source → its label there

    def enter(self, source: str, label: str, name: str) -> str:
        "The merged name of a source's class. `InputError` if the source has it already."
        what = meaning(name)
        if what not in self.named:
            self.named[what] = _spelled_after(self._mirror_image(what), name)
        merged = self.named[what]
        labels = self.owners.setdefault(merged, {})
        if source in labels:
            raise InputError(f"{source}: {labels[source]!r} and {label!r} would both become the class "
                             f"{merged!r}; say by --rename what each of them is")
        labels[source] = label
        return merged

    def _mirror_image(self, what: Meaning) -> str|None:
        "The class that is the mirror image of a structure, if there is one so far."
        side = {"left": "right", "right": "left"}.get(what.side, "none")
        return self.named.get(what.on(side))

    def find(self, name: str) -> str:
        "The class that a name of any spelling stands for; `InputError` if there is none."
        if name in self.owners: return name
        what = meaning(name)
        if what in self.named: return self.named[what]
        raise did_you_mean("class", name, list(self.owners))


# %%
found = MergedNames()
for source, labels in {"a": ["kidney_left", "liver"], "b": ["Liver", "Kidney R"]}.items():
    print(source, {label: found.enter(source, label, label) for label in labels})
test_fail(lambda: found.enter("b", "LIVER", "LIVER"), contains="would both become")


# %% [markdown]
# ## Unions
#
# A folder's `unions.json` goes with it, in the merged names. More may be declared for the whole: `parotids` of one folder, of whose
# members only the others know. Who says otherwise is told.

# %%
#| export
class Declared(NamedTuple):
    "A union as somebody declared it."
    where: str
    union: str
    members: list[str]


def _checked_members(one: Declared, names: MergedNames) -> Declared:
    "A union in the merged names. `InputError` for a class that is in no source."
    try:
        members = [names.find(member) for member in one.members]
        return Declared(one.where, names.find(one.union), members)
    except InputError as e:
        raise InputError(f"{one.where}, union {one.union!r}: {e}") from None



# %%
#| export
def _check_agreement(declared: list[Declared], table: dict[str, list[str]]):
    "`InputError` where two sources make one union of different classes; table: of who declared it first."
    first: dict[str, Declared] = {}
    for one in declared:
        first.setdefault(one.union, one)
        atoms = set()
        for member in one.members:
            atoms |= atoms_of(member, table)
        if atoms == atoms_of(one.union, table): continue
        other = first[one.union]
        ours = some_of(one.members)
        theirs = some_of(other.members)
        raise InputError(f"{one.where} says that {one.union!r} is made of {ours}, "
                         f"{other.where} of {theirs}; rename one of them (--rename)")


def merged_unions(declared: list[Declared], names: list[str]) -> dict[str, list[str]]:
    "One table of unions, in the merged names. `InputError` where two sources contradict each other."
    table: dict[str, list[str]] = {}
    for one in declared:
        table.setdefault(one.union, one.members)
    places = some_of(dict.fromkeys(one.where for one in declared), length=200)
    try:
        union_ids(table, names)
    except InputError as e:
        raise InputError(f"unions of {places}: {e}") from None
    _check_agreement(declared, table)
    return table


# %%
lungs = ["lung_left", "lung_right", "lungs", "upper", "lower", "heart"]
a = Declared("a", "lungs", ["lung_left", "lung_right"])
by_lobes = [
    Declared("b", "lungs", ["upper", "lower", "lung_right"]),
    Declared("b", "lung_left", ["upper", "lower"]),
]
print(merged_unions([a, *by_lobes], lungs))
for wrong in (
    [a, Declared("b", "lungs", ["lung_left", "heart"])],
    [Declared("--unions", "lungs", ["lungs", "heart"])],
    [a, Declared("b", "lung_left", ["lungs", "upper"])],
):
    try: merged_unions(wrong, lungs)
    except InputError as e: print("-", e)


# %% [markdown]
# ## What cannot stand side by side
#
# A source's "kidney" holds another's left and right one. As two classes of one network each would deny the other, on the same pixels. The
# names tell such wholes: a paired structure without a side, and what TotalSegmentator has in parts. A union solves it, and only its
# author knows whether it is one, so it is asked for.

# %%
#| export
@functools.cache
def _parts_of_total() -> dict[Meaning, set[Meaning]]:
    "What TotalSegmentator has in parts that are one class of the challenge."
    table: dict[Meaning, set[Meaning]] = {}
    for version in (1, 2):
        for whole, parts in total_parts(version).items():
            if len(parts) < 2: continue
            meanings = table.setdefault(meaning(whole), set())
            meanings.update(meaning(part) for part in parts)
    return table


def known_parts(what: Meaning) -> set[Meaning]:
    "The meanings that are parts of another, as far as names tell."
    parts = set(_parts_of_total().get(what, ()))
    if not what.side:
        parts |= {what.on("left"), what.on("right")}
    parts.discard(what)
    return parts


# %%
test_eq(known_parts(meaning("Kidneys")), {meaning("kidney_l"), meaning("kidney_r")})
assert meaning("lung_upper_lobe_left") in known_parts(meaning("Lung_L"))


# %%
#| export
def _apart_somewhere(names: MergedNames, a: str, b: str) -> bool:
    "Has a source both classes? Then it tells them apart itself."
    both = names.owners[a].keys() & names.owners[b].keys()
    return bool(both)


def _first_source(names: MergedNames, name: str) -> str:
    "The first source that has a class."
    return next(iter(names.owners[name]))


def _parts_found(names: MergedNames, what: Meaning) -> list[str]:
    "The classes that are parts of another, by their names."
    meanings = sorted(known_parts(what))
    return [names.named[part] for part in meanings if part in names.named]



# %%
#| export
def _no_union(names: MergedNames, whole: str, part: str, parts: list[str]) -> InputError:
    "What to tell of a class that holds another one, where no union says so."
    one = _first_source(names, whole)
    other = _first_source(names, part)
    if len(parts) < 2:
        remedy = "name all its parts in class_names.json and unions.json there"
    else:
        union = json.dumps({whole: parts}, ensure_ascii=False)
        remedy = f"give a file with {union} by --unions"
    return InputError(f"{whole!r} of {one} holds {part!r} of {other}, and no union says so; "
                      f"{remedy}, or rename one (--rename)")


def check_wholes(names: MergedNames, classes: ClassMap):
    "`InputError` for a class that holds another one, by their names, where no union says so."
    related = set()
    for a, b in related_pairs(classes.unions):
        related.add((classes.name(a), classes.name(b)))
    for what, whole in names.named.items():
        parts = _parts_found(names, what)
        for part in parts:
            if (whole, part) in related: continue
            if _apart_somewhere(names, whole, part): continue
            raise _no_union(names, whole, part, parts)


# %%
kidneys = MergedNames()
for source, label in (("a", "kidney_left"), ("a", "kidney_right"), ("b", "Kidney")):
    kidneys.enter(source, label, label)
apart = ClassMap.from_names(kidneys.owners)
test_fail(lambda: check_wholes(kidneys, apart), contains="--unions")
check_wholes(kidneys, ClassMap.from_names(kidneys.owners, {"Kidney": ["kidney_left", "kidney_right"]}))


# %% [markdown]
# Two more things are noted, and go on. What looks alike and is not known to be one stays two classes: `CT-Liver` beside `liver` is a
# liver that was not renamed. And what lies within another structure, such as the vessels of the liver, is drawn by one source where the
# other draws the whole: each pixel then belongs to one of them, and the sources disagree which.

# %%
#| export
def _pairs_of_strangers(names: MergedNames) -> Iterator[tuple[str, str, str]]:
    "Each two classes that no source has both of, in both orders, with words for where they are."
    for a in names.owners:
        for b in names.owners:
            if a == b or _apart_somewhere(names, a, b): continue
            one = _first_source(names, a)
            other = _first_source(names, b)
            yield a, b, f"{b} of {other} and {a} of {one}"


def doubts(names: MergedNames) -> Iterator[str]:
    "Notes on classes of different sources that may be one, or lie within one another."
    words, structures, regions = {}, {}, {}
    for name in names.owners:
        codes = snomed(name)
        words[name] = set(plain_name(name).split("_"))
        structures[name] = codes.structure.code if codes.structure else None
        regions[name] = codes.region.code if codes.region else None
    for a, b, places in _pairs_of_strangers(names):
        both_known = structures[a] is not None and structures[b] is not None
        if words[a] < words[b] and not both_known:
            yield f"{places} stay two classes; if they are one, say so by --rename"
        if both_known and regions[b] == structures[a]:
            yield f"{places} share pixels, the first lies within the second; a pixel is taught as one of them"


# %%
livers = MergedNames()
for source, label in (("a", "liver"), ("b", "CT-Liver"), ("c", "liver_vessels")):
    livers.enter(source, label, label)
print(*doubts(livers), sep="\n")


# %% [markdown]
# ## All together

# %%
#| export
@dataclass
class ClassPlan:
    "The classes of a merge, and what each source's numbers become."
    classes: ClassMap
    ids: dict[str, np.ndarray]  # source → uint8 [256]: its number → the merged one
    labels: dict[str, dict[str, str]]  # class → source → what it is called there
    notes: list[str]


def _lookup(classes: ClassMap, merged: list[str]) -> np.ndarray:
    "What a source's numbers become, uint8 [256]; 0 and 255 stay what they are."
    table = np.zeros(256, np.uint8)
    for number, name in enumerate(merged, 1):
        table[number] = classes.id(name)
    table[IGNORE] = IGNORE
    return table


def _check_used(rename: Mapping[str, str], used: set[str], labels: set[str]):
    "`InputError` for a line of the renaming that renames nothing."
    for line in rename:
        if line in used: continue
        if line in labels:
            why = "lines with a folder's name speak of that class wherever it is"
            raise InputError(f"--rename: the line {line!r} renames nothing ({why}); leave it out")
        raise did_you_mean("label for --rename", line, sorted(labels))


# %%
#| export
def match_classes(
    sources: dict[str, ClassMap], # source → its classes
    rename: Mapping[str, str] | None = None, # label, or source/label → class name
    unions: Mapping[str, list[str]] | None = None, # union → its members, in any spelling
) -> ClassPlan:
    "One list of classes for all sources. `InputError` for what contradicts."
    rename, unions = rename or {}, unions or {}
    names = MergedNames()
    used, declared = set(), []
    merged, labels = {}, set()
    for source, classes in sources.items():
        reader = Renaming(rename, source)
        used |= reader.used(classes.names)
        new = {label: names.enter(source, label, reader.kept(label)) for label in classes.names}
        merged[source] = list(new.values())
        labels |= set(new)
        for union, members in classes.union_table.items():
            new_members = [new[member] for member in members]
            declared.append(Declared(source, new[union], new_members))
    _check_used(rename, used, labels)
    for union, members in unions.items():
        as_given = Declared("--unions", union, list(members))
        declared.append(_checked_members(as_given, names))
    table = merged_unions(declared, list(names.owners))
    classes = ClassMap.from_names(names.owners, table)
    check_wholes(names, classes)
    ids = {source: _lookup(classes, those) for source, those in merged.items()}
    return ClassPlan(classes, ids, names.owners, list(doubts(names)))


# %%
a = ClassMap.from_names(["parotid_left", "parotid_right", "mandible"])
b = ClassMap.from_names(["Bone_Mandible", "Parotids"])
plan = match_classes({"a": a, "b": b}, unions={"parotids": ["Parotid_L", "Parotid_R"]})
print(plan.classes.names, plan.classes.union_table)
test_eq(plan.ids["b"][[0, 1, 2, 255]], [0, 3, 4, 255])
try: match_classes({"a": a, "b": b})
except InputError as e: print("-", e)
try: match_classes({"a": a, "b": b}, {"Parotide": "parotid_left"})
except InputError as e: print("-", e)
