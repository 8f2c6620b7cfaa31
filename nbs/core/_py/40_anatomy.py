# %% [markdown]
# # Anatomy
#
# > Which number means which organ, which organs mirror each other, and in what colour to draw them.
#
# - skip_showdoc: true

# %%
#| default_exp core.anatomy

# %%
#| export
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from ctseg.core.arguments import check_argument, shown_argument
from ctseg.core.errors import InputError, did_you_mean
from ctseg.core.json_files import read_json, write_json
from ctseg.core.unions import Unions, read_unions, union_ids, union_table

# %%
#| hide
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from fastcore.test import test_eq
from matplotlib_inline.backend_inline import set_matplotlib_formats
from skimage.color import rgb2lab

from ctseg.core.errors import InputError
from ctseg.core.json_files import write_json
set_matplotlib_formats("png")  # one pixel a point: a quarter of the bytes of the default

# %% [markdown]
# A mask is an array of small integers. A `ClassMap` says what they mean: how many classes there are, what number 36 is called, which number becomes which when the image is mirrored, and in what colour it is drawn. Nothing may assume the 54 classes of the challenge. The same code runs on seven organs of the neck.
#
# ## Left and right
#
# A mirrored body is still a body, but its left kidney has become a right one. The names say which classes are partners: two names that differ only in the word *left* or *right*, or its short form *l* or *r*, *lt* or *rt*. Only whole words count, so *bright* has no side, and neither has the vertebra *L1*.
#
# One organ has sides that are no mirror images. A mirrored left ventricle does not look like a right one. It stays a left ventricle, in a heart that lies on the other side, as a mirrored liver stays a liver.

# %%
#| export
_SIDE = re.compile(
    r"(?<![^\W\d_])(left|right)(?![^\W\d_])"  # not inside a word: letters of any script
    r"|(?<![^\W_])(lt|rt|l|r)(?![^\W_])",     # nor beside a digit, for the short ones
    re.IGNORECASE,
)
_OTHER_SIDE = {"left": "right", "lt": "rt", "l": "r"}
_OTHER_SIDE_BACK = {right: left for left, right in _OTHER_SIDE.items()}
_HEART = re.compile(r"(?<![a-z])(heart|cardiac|atri(um|al)|ventric(le|ular))(?![a-z])", re.IGNORECASE)
_BRAIN = re.compile(r"(?<![a-z])lat(eral)?(?![a-z])", re.IGNORECASE)  # its ventricles have mirror images

def side_word(name: str) -> str:
    "The word for the side in a name, in small letters: left, right, l, r, lt or rt; \"\" if it has none, or two."
    if _HEART.search(name) and not _BRAIN.search(name): return ""
    words = [match[0].lower() for match in _SIDE.finditer(name)]
    return words[0] if len(words) == 1 else ""


# %%
names = [
    "kidney_left",
    "Lens Rt",
    "bright_spot",
    "vertebrae_L1",
    "heart_atrium_left",
    "lateral_ventricle_left",
]
for name in names: print(f"{name:24}{side_word(name) or '-'}")


# %%
#| export
def other_side(name: str) -> str:
    "The name of the mirror image: `kidney_left` → `kidney_right`; \"\" if the name has no side."
    word = _OTHER_SIDE.get(side_word(name)) or _OTHER_SIDE_BACK.get(side_word(name))
    if not word: return ""
    def in_its_case(match: re.Match) -> str:
        if match[0].isupper(): return word.upper()
        return word.capitalize() if match[0][0].isupper() else word
    return _SIDE.sub(in_its_case, name)


# %%
test_eq(
    [other_side(name) for name in ("kidney_left", "Lens Rt", "Lung_L", "liver", "heart_atrium_left")],
    ["kidney_right", "Lens Lt", "Lung_R", "", ""],
)


# %%
#| export
def lateral_pairs(
    names: Iterable[str], # the class names; name i belongs to id i+1
) -> tuple[tuple[int, int], ...]: # (id of the left one, id of the right one), by the left one's id
    "The classes that are each other's mirror image, by the words for left and right in their names: (left id, right id)."
    ids = {name.lower(): i for i, name in enumerate(names, 1)}
    pairs = []
    for name, i in ids.items():
        right = _OTHER_SIDE.get(side_word(name))
        partner = ids.get(_SIDE.sub(right, name)) if right else None
        if partner: pairs.append((i, partner))
    return tuple(pairs)


# %% [markdown]
# Sides are found in the spellings that files in the world use. Words that only contain *right*, such as *bright*, have no side.

# %%
test_eq(
    lateral_pairs(["kidney_left", "liver", "kidney_right", "bright_spot", "Left lung", "right lung"]),
    ((1, 3), (5, 6)),
)
# a rib without its partner stays single
test_eq(lateral_pairs(["parotid_right", "parotid_left", "rib_left"]), ((2, 1),))
test_eq(
    lateral_pairs(["parotid_l", "parotid_r", "Lens Lt", "Lens Rt", "vertebrae_L1", "vertebrae_R1"]),
    ((1, 2), (3, 4)),
)
test_eq(
    lateral_pairs(
        ["heart_atrium_left", "heart_atrium_right", "heart_ventricle_left", "heart_ventricle_right"]
    ),
    (),
)
test_eq(lateral_pairs(["lateral_ventricle_left", "lateral_ventricle_right"]), ((1, 2),))  # of the brain


# %% [markdown]
# ## Colours that can be told apart
#
# Fifty-four structures in one picture need fifty-four colours, none of which the eye takes for another. Equal steps in RGB are not equal steps for the eye. In the CIELAB space they nearly are, so distances are measured there. Greys are left out, because the CT underneath is grey.
#
# Lateral partners share a hue: the left one is darker, the right one lighter. So a candidate is a pair of colours from the same place of the colour wheel.

# %%
#| export
def candidate_colours() -> tuple[np.ndarray, np.ndarray]:
    "Candidates in CIELAB, float [K,2,3] (a darker and a lighter one), and which of them a screen can show, bool [K,2]."
    from skimage.color import lab2rgb, rgb2lab  # slow, and only needed here and below
    hues = np.radians(np.arange(0, 360, 6))
    hue, chroma, light = np.meshgrid(hues, np.arange(32, 100, 12), np.arange(36, 80, 6), indexing="ij")
    darker = np.stack([light, chroma*np.cos(hue), chroma*np.sin(hue)], -1).reshape(-1, 3)
    lab = np.stack([darker, darker + [22, 0, 0]], 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # skimage warns of the very clipping that is sought
        shown = rgb2lab(lab2rgb(lab))    # what a screen cannot show comes back as another colour
    return lab, np.abs(shown - lab).max(-1) < 1


# %%
lab, displayable = candidate_colours()
print(f"{len(lab)} pairs of colours, of which a screen can show {displayable.all(1).sum()}")


# %% [markdown]
# The choice is greedy. Each structure takes the colour that is *farthest from all colours taken so far* and from black, the background.

# %%
#| export
def choose_colours(n: int, pairs: Iterable[tuple[int, int]]) -> np.ndarray:
    "Colours for ids 0…n, uint8 [n+1,3], each as far as possible from those before it in CIELAB; partners share a hue."
    from skimage.color import lab2rgb  # as above
    lab, displayable = candidate_colours()
    chosen = np.zeros((n + 1, 3))        # the background is black
    near = np.linalg.norm(lab, axis=-1)  # distance of each candidate to the nearest colour taken so far
    partner = dict(pairs)
    coloured_with_partner = set(partner.values())
    for i in range(1, n + 1):
        if i in coloured_with_partner: continue
        ids = [i, partner[i]] if i in partner else [i]
        sides = slice(0, len(ids))
        score = np.where(displayable[:, sides], near[:, sides], -1).min(1)
        best = int(score.argmax())
        for id, colour in zip(ids, lab[best]):
            chosen[id] = colour
            near = np.minimum(near, np.linalg.norm(lab - colour, axis=-1))
    return (lab2rgb(chosen)*255).round().astype(np.uint8)


# %%
#| fig-alt: "A strip of the background and five colours; the first two are a dark and a light one of one hue"
colours = choose_colours(5, pairs=((1, 2),))
fig, ax = plt.subplots(figsize=(5, 1), layout="constrained")
ax.imshow(colours[None])
ax.set(
    yticks=[],
    xticks=range(6),
    xticklabels=["background", "1 left", "2 right", "3", "4", "5"],
    title="Five colours, the first two a pair",
)
ax.tick_params(length=0, labelsize=8)
test_eq(colours[0], [0, 0, 0])

# %% [markdown]
# ## The class map
#
# A class map is frozen, so it can be compared and hashed. What follows from the names is computed when first asked for. `colours` and `swap` are lookup tables: index them with a whole mask, and every pixel is translated at once.

# %%
#| export
IGNORE = 255  # in a mask: nothing is said about this pixel, for any class

def check_classes(names: tuple[str, ...], pairs: tuple[tuple[int, int], ...]) -> None:
    "`InputError` unless there are 1 to 254 unique names, and the pairs are disjoint pairs of their ids."
    if not 1 <= len(names) < IGNORE:
        raise InputError(f"{len(names)} classes; expected 1 to {IGNORE - 1}, "
                         f"because masks hold 8-bit numbers, of which {IGNORE} is for pixels to be ignored")
    long = [name for name in names if len(name) > 200]
    if long:
        raise InputError(f"the class name {long[0][:60]!r}… "
                         "has more than 200 characters; give the class a shorter one")
    odd = [name for name in names if not name.strip() or not name.isprintable()]
    if odd:
        raise InputError(f"the class name {odd[0][:60]!r} cannot be printed in a line; "
                         "give the class another name")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise InputError(f"the class name {repeated[0]!r} is given twice; give every class a name of its own")
    ids = [i for pair in pairs for i in pair]
    valid = set(range(1, len(names) + 1))
    if len(set(ids)) < len(ids) or not set(ids) <= valid:
        raise InputError(f"lateral pairs {pairs} must use ids 1 to {len(names)}, each at most once")


# %%
for names, pairs in ((["liver", "liver"], ()), (["liver"], ((1, 2),)), ([], ())):
    try: check_classes(names, pairs)
    except InputError as e: print(e)


# %% [markdown]
# A class map on disk is the JSON object that the challenge's tools use, `{"1": "brainstem", "2": "spinal_cord", …}`. Its ids run from 1 to C without a gap. A gap would be a class that nobody can have, and most likely is a slip of whoever wrote the file.

# %%
#| export
def read_class_names(path: str | Path) -> list[str]:
    """The names in a `class_names.json`, in the order of their ids.

    Raises `InputError` that names the file and what is wrong.
    """
    table = read_json(path)
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        example = '{"1": "liver", "2": "spleen"}'
        raise InputError(f"{path}: expected an object from ids to names, such as {example}")
    if str(table.get("0", "")).lower() == "background":
        raise InputError(f"{path}: id '0' is the background, which is no class here; leave it out")
    ids = [str(i) for i in range(1, len(table) + 1)]
    odd = sorted(set(table) - set(ids))
    if odd:
        raise InputError(f"{path}: id {odd[0]!r} is not in 1…{len(table)}; "
                         f"number the {len(table)} classes from 1 without a gap")
    names = [table[i] for i in ids]
    try:
        check_classes(names, ())
    except InputError as e:
        raise InputError(f"{path}: {e}") from None
    return names


# %%
with tempfile.TemporaryDirectory() as d:
    path = Path(d)/"class_names.json"
    write_json({"2": "spleen", "1": "liver"}, path)
    test_eq(read_class_names(path), ["liver", "spleen"])
    write_json({"1": "liver", "3": "spleen"}, path)
    try: read_class_names(path)
    except InputError as e: print(str(e).replace(d, "…"))


# %%
#| export
@dataclass(frozen=True, repr=False)
class ClassTable:
    "The names of classes and which of them are lateral partners: id `i+1` is `names[i]`, and 0 is no class."
    names: tuple[str, ...]                   # C unique names
    pairs: tuple[tuple[int, int], ...] = ()  # ids of lateral partners, (left, right)
    unions: Unions = ()  # classes made of others: (id, ids of its atoms)

    def __post_init__(self):
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "pairs", tuple((int(a), int(b)) for a, b in self.pairs))
        check_classes(self.names, self.pairs)

    def __len__(self) -> int: return len(self.names)

    def __repr__(self) -> str:
        first = ", ".join(self.names[:3]) + (", …" if len(self) > 3 else "")
        return f"{type(self).__name__}({len(self)}: {first}; pairs: {len(self.pairs)})"

    def name(self, id: int) -> str:
        "The name of class `id`; 0 is the background."
        if not 0 <= id <= len(self):
            raise InputError(f"there is no class {id}; ids go from 1 to {len(self)} ({self.names[-1]})")
        return self.names[id - 1] if id else "background"

    def id(self, name: str) -> int:
        "The id, 1…C, of the class called `name`."
        if name not in self.names: raise did_you_mean("class", name, self.names)
        return self.names.index(name) + 1


# %%
table = ClassTable(("liver", "kidney_left", "kidney_right"), ((2, 3),))
test_eq((len(table), table.name(2), table.id("liver"), table.name(0)), (3, "kidney_left", 1, "background"))
try: table.id("kidney")
except InputError as e: print(e)
table


# %%
#| export
def _in_order(names: Iterable[str]) -> tuple[str, ...]:
    "Names of classes as they were given; `InputError` for a single text, and for what keeps no order."
    if isinstance(names, (set, frozenset)):
        raise InputError(f"classes is {shown_argument(names)}, which has no order; expected a list of names")
    numbers = list(names.values()) if isinstance(names, Mapping) else []
    numbered = any(isinstance(number, int) for number in numbers)
    if numbered and numbers != [*range(1, len(numbers) + 1)]:
        raise InputError(f"classes is {shown_argument(names)}, whose numbers are not 1, 2, … in order; "
                         "expected a list of names, that of class 1 first")
    check_argument("classes", names, Iterable[str])
    names = tuple(names)
    check_argument("classes", names, Iterable[str])
    return names


# %%
for wrong in ({"liver", "spleen"}, {"liver": 2, "spleen": 1}, "liver", [1, 2]):
    try: _in_order(wrong)
    except InputError as e: print(str(e).replace(str(wrong), "…"))


# %%
#| export
class ClassFiles(ClassTable):
    "Classes that are read and written."
    @classmethod
    def from_names(
        cls, names: Iterable[str], unions: Mapping[str, Iterable[str]] | None = None, # union → its members
    ) -> Self:
        "A class map; lateral pairs are inferred from the names. `InputError` for what has no order."
        names = _in_order(names)
        return cls(names, lateral_pairs(names), union_ids(unions or {}, names))

    @classmethod
    def from_json(cls, path: str | Path) -> Self:
        "The classes of a `class_names.json`, with the unions of a `unions.json` beside it."
        names, beside = tuple(read_class_names(path)), Path(path).parent/"unions.json"
        unions = read_unions(beside, names) if beside.exists() else ()
        return cls(names, lateral_pairs(names), unions)

    @property
    def union_table(self) -> dict[str, list[str]]:
        "Which class is made of which others, by name."
        return union_table(self.unions, self.names)

    def to_json(self, path: str | Path) -> None:
        "Write a `class_names.json`."
        write_json({str(i): name for i, name in enumerate(self.names, 1)}, path)


# %% [markdown]
# Written and read again, the classes and their unions are the same.

# %%
with tempfile.TemporaryDirectory() as d:
    table = ClassFiles.from_names(
        ["kidney_left", "kidney_right", "kidneys"], {"kidneys": ["kidney_left", "kidney_right"]}
    )
    table.to_json(f"{d}/class_names.json")
    write_json(table.union_table, f"{d}/unions.json")
    test_eq(ClassFiles.from_json(f"{d}/class_names.json"), table)

# %%
#| export
IGNORED_COLOUR = (255, 255, 255)

class ClassMap(ClassFiles):
    "What the numbers in a mask mean: id `i+1` is `names[i]`; 0 is background (or, in partly labelled data, unknown)."
    @cached_property
    def swap(self) -> np.ndarray:
        "The id each id becomes when the body is mirrored, int64 [C+1]."
        swap = np.arange(len(self) + 1)
        for a, b in self.pairs: swap[a], swap[b] = b, a
        return swap

    @property
    def unpaired_sides(self) -> tuple[str, ...]:
        "Names of one side without a partner: mirrored, a left kidney would have no right one to become."
        paired = {i for pair in self.pairs for i in pair}
        single = [name for i, name in enumerate(self.names, 1) if i not in paired]
        mirrored = {}
        for union, members in self.unions:
            partner = int(self.swap[union])
            mirrored[partner] = {int(self.swap[member]) for member in members}
        lopsided = [self.name(union) for union, members in self.unions if mirrored.get(union) != set(members)]
        return tuple(filter(side_word, single)) + tuple(lopsided)

    @cached_property
    def colours(self) -> np.ndarray:
        "A colour for each id, uint8 [C+1,3]; 0 is black."
        return choose_colours(len(self), self.pairs)

    def colourise(self, mask) -> np.ndarray:
        "Integers [...] as colours, uint8 [...,3]; pixels to be ignored are `IGNORED_COLOUR`."
        mask = np.asarray(mask)
        ignored = mask == IGNORE
        colours = self.colours[np.where(ignored, 0, mask)]
        colours[ignored] = IGNORED_COLOUR
        return colours


# %%
classes = ClassMap.from_names(["brainstem", "spinal_cord", "parotid_right", "parotid_left"])
test_eq(classes.swap, [0, 1, 2, 4, 3])
test_eq(classes.swap[classes.swap], np.arange(5))  # mirrored twice is as before
test_eq(classes.unpaired_sides, ())
both = ClassMap.from_names(
    ["lung_left", "lung_right", "lungs"], unions={"lungs": ["lung_left", "lung_right"]}
)
test_eq((both.unions, both.unpaired_sides), (((3, (1, 2)),), ()))
test_eq(ClassMap.from_names(["kidney_left", "liver", "heart_atrium_left"]).unpaired_sides, ("kidney_left",))
test_eq(classes.colourise([[0, 1], [2, 2]]).shape, (2, 2, 3))
test_eq(classes.colourise([0, IGNORE]), [[0, 0, 0], IGNORED_COLOUR])
with tempfile.TemporaryDirectory() as d:
    classes.to_json(f"{d}/class_names.json")
    test_eq(ClassMap.from_json(f"{d}/class_names.json"), classes)
classes

# %% [markdown]
# ## The 54 structures of the challenge
#
# The ENS/Raidium challenge numbers its structures in the alphabetical order of the [TotalSegmentator](https://arxiv.org/abs/2208.05868) (v1) classes, after merging the lung lobes, the vertebrae, the ribs of each side and the chambers of the heart. Some names are Latin or old-fashioned (*autochthon*: the deep muscles of the back; *iliac vena*: the iliac vein). They are kept, since files in the world use them.

# %%
#| export
RAIDIUM54 = ClassMap.from_names("""
    adrenal_gland_left adrenal_gland_right aorta autochthon_left autochthon_right brain clavicula_left
    clavicula_right colon duodenum esophagus face femur_left femur_right gallbladder
    gluteus_maximus_left gluteus_maximus_right gluteus_medius_left gluteus_medius_right
    gluteus_minimus_left gluteus_minimus_right heart hip_left hip_right humerus_left humerus_right
    iliac_artery_left iliac_artery_right iliac_vena_left iliac_vena_right iliopsoas_left iliopsoas_right
    inferior_vena_cava kidney_left kidney_right liver lung_left lung_right pancreas
    portal_vein_and_splenic_vein pulmonary_artery rib_left rib_right sacrum scapula_left scapula_right
    small_bowel spleen stomach trachea urinary_bladder vertebrae_cervical vertebrae_lumbar
    vertebrae_thoracic
""".split())

# %% [markdown]
# The order is alphabetical, which guards against a slip of the list. The lateral pairs, found by name, are the sixteen that participants of the challenge list by number.

# %%
test_eq(len(RAIDIUM54), 54)
test_eq(list(RAIDIUM54.names), sorted(RAIDIUM54.names))
pairs = (
    (1, 2), (4, 5), (7, 8), (13, 14), (16, 17), (18, 19), (20, 21), (23, 24),
    (25, 26), (27, 28), (29, 30), (31, 32), (34, 35), (37, 38), (42, 43), (45, 46),
)
test_eq(RAIDIUM54.pairs, pairs)
test_eq(
    [RAIDIUM54.id(n) for n in ("brain", "iliac_vena_left", "liver", "vertebrae_thoracic")], [6, 29, 36, 54]
)


# %% [markdown]
# How well can the colours be told apart? In CIELAB a difference of about 2 is just noticeable side by side. The closest two of the 55 are several times that apart. Lateral partners are plainly different but of one hue.

# %%
def apart(colours): # smallest CIELAB distance between any two rows
    lab = rgb2lab(colours/255)
    gap = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
    return gap[~np.eye(len(gap), dtype=bool)].min()

lab = rgb2lab(RAIDIUM54.colours/255)
partners = [np.linalg.norm(lab[a] - lab[b]) for a, b in RAIDIUM54.pairs]
print(
    f"closest two of 55: {apart(RAIDIUM54.colours):.1f}; partners: {min(partners):.1f} to {max(partners):.1f}"
)
assert apart(RAIDIUM54.colours) > 12
test_eq(len(np.unique(RAIDIUM54.colours, axis=0)), 55)

# %%
#| fig-alt: "The 54 structures of the challenge with their numbers and colours, in four columns"
rows = 14
fig, ax = plt.subplots(figsize=(11, 4.2), layout="constrained")
for i, name in enumerate(RAIDIUM54.names):
    x, y = divmod(i, rows)
    ax.add_patch(plt.Rectangle((4*x, -y - .9), .6, .8, color=RAIDIUM54.colours[i + 1]/255))
    ax.text(4*x + .7, -y - .5, f"{i + 1}  {name}", va="center", fontsize=8.5)
ax.set(xlim=(0, 16.5), ylim=(-rows, 0), title="RAIDIUM54: partners share a hue, left darker, right lighter")
ax.axis("off")
plt.show()

# %% [markdown]
# A mask can be mirrored now. Flip the pixels *and* translate the ids. Without the second half a network learns that left and right do not matter. (In the challenge's frame, which is turned by 90 degrees, the anatomical mirror is a flip of the *rows*.)
#
# No swap can mend one thing: the mirrored liver lies on the left, as in one person of ten thousand. That is why mirroring is never on by default.

# %%
#| fig-alt: "Two kidneys and a liver: as drawn, mirrored with wrong names, mirrored with names exchanged"
left, right, liver = (RAIDIUM54.id(n) for n in ("kidney_left", "kidney_right", "liver"))
mask = np.zeros((40, 40), np.uint8)
mask[4:12, 20:28], mask[28:36, 18:26], mask[22:38, 4:16] = left, right, liver
mirrored = RAIDIUM54.swap[mask[::-1]]
test_eq(RAIDIUM54.swap[mirrored[::-1]], mask)
fig, axes = plt.subplots(1, 3, figsize=(8, 2.9), layout="constrained")
for ax, m, title in zip(
    axes, (mask, mask[::-1], mirrored), ("a mask", "wrong: pixels flipped only", "right: ids swapped too")
):
    ax.imshow(RAIDIUM54.colourise(m))
    ax.set_title(title, fontsize=10)
    ax.axis("off")
    for id in (left, right, liver):
        at = np.argwhere(m == id)
        if len(at):
            ax.text(*at.mean(0)[::-1], RAIDIUM54.name(id), color="w", ha="center", va="center", fontsize=7)
