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
from collections import Counter
from collections.abc import Iterable, Mapping

from ctseg.core.files import InputError, did_you_mean, read_json

# %%
#| hide
import json
import tempfile
from pathlib import Path

from fastcore.test import test_eq

# %% [markdown]
# A class may be the **union** of others. It has a number of its own, which the masks of some sources hold, and no mask says it where its members are told apart. A folder says so in `unions.json`, beside the `class_names.json`:
#
#     {"lungs": ["lung_left", "lung_right"]}
#
# Where annotators examined the union, they did not examine its members: these stay unknown. The [losses](../losses/05_unions.ipynb) say what is learnt from such a slice.
#
# ## From names to numbers
#
# Members may be unions themselves. In the end only *atoms* count, the classes that are made of no others. What cannot be is told.

# %%
#| export
Unions = tuple[tuple[int, tuple[int, ...]], ...]  # (id of a union, ids of its atoms), the smallest first


def check_union(name: str, members: Iterable[str], names: tuple[str, ...]) -> None:
    "`InputError` unless a union and its members are classes, two or more, each once."
    for class_name in (name, *members):
        if class_name not in names:
            raise InputError(f"union {name!r}: {did_you_mean('class', class_name, names)}")
    twice = [member for member, count in Counter(members).items() if count > 1]
    if twice:
        raise InputError(f"union {name!r}: {twice[0]!r} is among its members twice; name it once")
    if len(set(members)) < 2:
        raise InputError(f"union {name!r}: {len(set(members))} members, expected two or more; "
                         "a class that is only called otherwise is renamed instead (--rename)")


# %%
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
    parts = [atoms_of(member, table, (*above, name)) for member in table[name]]
    return set().union(*parts)


def union_ids(
    table: Mapping[str, Iterable[str]], # union → its members
    names: Iterable[str], # of all classes; name i belongs to id i+1
) -> Unions:
    "The unions by number, the smallest first; `InputError` for one that cannot be."
    names = tuple(names)
    for name, members in table.items(): check_union(name, members, names)
    ids = {name: i for i, name in enumerate(names, 1)}
    found = []
    for name in table:
        atoms = sorted(ids[atom] for atom in atoms_of(name, table))
        found.append((ids[name], tuple(atoms)))
    alike = [atoms for atoms, count in Counter(atoms for _, atoms in found).items() if count > 1]
    if alike:
        same = [names[u - 1] for u, atoms in found if atoms == alike[0]]
        raise InputError(f"unions {same[0]!r} and {same[1]!r} have the same members; keep one of them")
    return tuple(sorted(found, key=lambda union: (len(union[1]), union)))


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
def read_union_lists(path) -> dict[str, list[str]]: # union → its members
    "What a `unions.json` holds, by name; `InputError` for anything else than lists of names."
    table = read_json(path)
    lists = table.values() if isinstance(table, dict) else [None]
    if not all(isinstance(members, list) and all(isinstance(m, str) for m in members) for members in lists):
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


def union_table(unions: Unions, names: Iterable[str]) -> dict[str, list[str]]:
    "The unions as a `unions.json` has them: the name of each, and those of its atoms."
    names = tuple(names)
    return {names[u - 1]: [names[m - 1] for m in members] for u, members in unions}


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
    atoms = {u: set(members) for u, members in unions}
    atoms |= {m: {m} for _, members in unions for m in members if m not in atoms}
    return [(a, b) for a in atoms for b in atoms if a != b and atoms[a] & atoms[b]]


# %%
test_eq(sorted(related_pairs(((3, (1, 2)),))), [(1, 3), (2, 3), (3, 1), (3, 2)])
