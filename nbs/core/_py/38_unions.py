# %% [markdown]
# # Classes made of others
#
# > One hospital outlines "lungs", another the left and the right lung. A union says that the first is the second two together.
#
# - skip_showdoc: true

# %%
#| default_exp core.unions

# %%
#| export
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping

from ctseg.core.errors import InputError, did_you_mean
from ctseg.core.json_files import read_json

# %%
#| hide
import json
import tempfile
from pathlib import Path

from fastcore.test import test_eq

# %% [markdown]
# A class may be the **union** of others. It has a number of its own. Masks that do not tell its members apart hold this number; all other masks hold the numbers of the members. A folder lists its unions in `unions.json`, beside the `class_names.json`:
#
#     {"lungs": ["lung_left", "lung_right"]}
#
# Where annotators examined the union, they did not examine its members: these stay unknown. The [losses](../losses/05_unions.ipynb) say what is learnt from such a slice.
#
# ## From names to numbers
#
# Members may be unions themselves. In the end only *atoms* count, the classes that are not made of others. A union that is impossible is refused.

# %%
#| export
Unions = tuple[tuple[int, tuple[int, ...]], ...]  # (id of a union, ids of its atoms), the smallest first


def check_union(name: str, members: Iterable[str], names: tuple[str, ...]) -> None:
    "`InputError` unless a union and its members are classes, two or more, each once."
    for class_name in (name, *members):
        if class_name not in names:
            raise InputError(f"union {name!r}: {did_you_mean('class', class_name, names)}")
    counts = Counter(members)
    for member, count in counts.items():
        if count > 1:
            raise InputError(f"union {name!r}: {member!r} is among its members twice; name it once")
    if len(counts) < 2:
        raise InputError(f"union {name!r}: {len(counts)} members, expected two or more; "
                         "a class that is only called otherwise is renamed instead (--rename)")


# %%
check_union("lungs", ["lung_left", "lung_right"], ("lung_left", "lung_right", "lungs"))
print("lungs = lung_left + lung_right: fine")
for wrong in (["lung_left", "lung_rigth"], ["lung_left"], ["lung_left", "lung_left"]):
    try: check_union("lungs", wrong, ("lung_left", "lung_right", "lungs"))
    except InputError as e: print(e)


# %%
#| export
def atoms_of(
    name: str,
    table: Mapping[str, Iterable[str]], # union → its members
    above: tuple[str, ...] = (), # the unions that led here
) -> set[str]:
    "The classes that a class is made of in the end; `InputError` for a union that contains itself."
    if name in above:
        way = " > ".join([*above, name])
        raise InputError(f"union {name!r} contains itself ({way}); take it out of its members")
    if name not in table: return {name}
    atoms = set()
    for member in table[name]:
        atoms |= atoms_of(member, table, (*above, name))
    return atoms


# %% [markdown]
# Unions are kept by number, the smallest first: whoever goes through them in this order has seen the parts before the whole.

# %%
#| export
def _by_size(union: tuple[int, tuple[int, ...]]) -> tuple[int, int]:
    "What unions are sorted by: how many atoms they have, then their id."
    id, atoms = union
    return len(atoms), id


def union_ids(
    table: Mapping[str, Iterable[str]], # union → its members
    names: Iterable[str], # of all classes; name i belongs to id i+1
) -> Unions:
    "The unions by number, the smallest first; `InputError` for one that cannot be."
    names = tuple(names)
    for name, members in table.items():
        check_union(name, members, names)
    ids = {name: id for id, name in enumerate(names, 1)}
    name_of = {}  # atoms → the union that has them
    for name in table:
        atoms = tuple(sorted(ids[atom] for atom in atoms_of(name, table)))
        other = name_of.setdefault(atoms, name)
        if other != name:
            raise InputError(f"unions {other!r} and {name!r} have the same members; keep one of them")
    unions = [(ids[name], atoms) for atoms, name in name_of.items()]
    return tuple(sorted(unions, key=_by_size))


# %%
lobes = ["upper", "middle", "lower", "lung_right", "lung_left", "lungs"]
made_of = {"lungs": ["lung_left", "lung_right"], "lung_right": ["upper", "middle", "lower"]}
test_eq(union_ids(made_of, lobes), ((4, (1, 2, 3)), (6, (1, 2, 3, 5))))
for wrong in (
    {"lungs": ["lungs", "upper"]},
    {"lungs": ["lung_left", "lung_right"], "lung_right": ["lungs", "upper"]},
    {"lungs": ["upper", "lower"], "lung_right": ["lower", "upper"]},
):
    try: union_ids(wrong, lobes)
    except InputError as e: print(e)


# %% [markdown]
# ## The file

# %%
#| export
def _is_list_of_texts(value) -> bool:
    "Is this a list with nothing but texts in it?"
    return isinstance(value, list) and all(isinstance(item, str) for item in value)

def read_union_lists(path) -> dict[str, list[str]]: # union → its members
    "What a `unions.json` holds, by name; `InputError` for anything else than lists of names."
    table = read_json(path)
    lists = table.values() if isinstance(table, dict) else [None]
    if not all(map(_is_list_of_texts, lists)):
        example = '{"lungs": ["lung_left", "lung_right"]}'
        raise InputError(f"{path}: expected an object from unions to lists of their members, "
                         f"such as {example}")
    return table


def read_unions(
    path, # a `unions.json`
    names: Iterable[str], # of all classes
) -> Unions:
    "The unions in a file; `InputError` names the file and what is wrong."
    table = read_union_lists(path)
    try:
        return union_ids(table, names)
    except InputError as e:
        raise InputError(f"{path}: {e}") from None


# %% [markdown]
# And back, as the file has them:

# %%
#| export
def union_table(unions: Unions, names: Iterable[str]) -> dict[str, list[str]]:
    "The unions as a `unions.json` has them: the name of each, and those of its atoms."
    name_of = dict(enumerate(names, 1))
    table = {}
    for union, members in unions:
        table[name_of[union]] = [name_of[member] for member in members]
    return table


# %%
with tempfile.TemporaryDirectory() as d:
    path = Path(d)/"unions.json"
    path.write_text(json.dumps(made_of))
    found = read_unions(path, lobes)
    path.write_text(json.dumps(union_table(found, lobes)))
    test_eq(read_unions(path, lobes), found)
union_table(found, lobes)


# %% [markdown]
# ## Who is related
#
# Two classes are related if they share an atom. A pixel of one says nothing about the other: "lungs" leaves open which, and within a lung there are lungs.

# %%
#| export
def related_pairs(unions: Unions) -> list[tuple[int, int]]:
    "The pairs (a, b) of different classes that share an atom, in both orders."
    atoms = {union: set(members) for union, members in unions}
    for _, members in unions:
        for member in members:
            atoms.setdefault(member, {member})
    pairs = itertools.permutations(atoms, 2)
    return [(a, b) for a, b in pairs if atoms[a] & atoms[b]]


# %% [markdown]
# Two lungs share a voxel with the union of both, and not with each other.

# %%
test_eq(sorted(related_pairs(((3, (1, 2)),))), [(1, 3), (2, 3), (3, 1), (3, 2)])
