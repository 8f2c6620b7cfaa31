# %% [markdown]
# # Anatomy
#
# > Which number means which organ, which organs mirror each other, and in what colour to draw them.
#
# - skip_showdoc: true

# %%
#| default_exp anatomy

# %% [markdown]
# A mask is an array of small integers. What the integers mean is kept in one place: a `ClassMap`. Everything else in `ctseg` asks it *how
# many classes are there*, *what is number 36 called*, *which number becomes which when the image is mirrored*, and *what colour is it
# drawn in*. Nothing may assume the 54 classes of the challenge: the same code runs on seven organs of the neck.

# %%
#| export
import re, warnings
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from skimage.color import lab2rgb, rgb2lab

from ctseg.files import InputError, did_you_mean, read_json, write_json

# %%
#| hide
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
from fastcore.test import test_eq, test_fail

# %% [markdown]
# ## Left and right
#
# A mirrored body is still a body, but its left kidney has become a right one. So the classes that come in a left and a right version have
# to be known. Their names already say it: two names that differ only in the word *left* or *right*, or its short form *l* or *r*, *lt* or
# *rt*, are partners. Only whole words count, or the *bright* in some future name would be somebody's right, and the L of the vertebra *L1* a
# left side.
#
# One organ has sides that are not mirror images: a mirrored left ventricle does not look like a right one. It stays a left ventricle, in
# a heart that lies on the other side, as a mirrored liver stays a liver.

# %%
#| export
_SIDE = re.compile(r"(?<![^\W\d_])(left|right)(?![^\W\d_])|(?<![^\W_])(lt|rt|l|r)(?![^\W_])", re.IGNORECASE)  # letters of any script
_OTHER = dict(left="right", lt="rt", l="r")
_HEART = re.compile(r"(?<![a-z])(heart|cardiac|atri(um|al)|ventric(le|ular))(?![a-z])", re.IGNORECASE)  # its sides are no mirror images
_BRAIN = re.compile(r"(?<![a-z])lat(eral)?(?![a-z])", re.IGNORECASE)  # the lateral ventricles of the brain are

def _side(name: str) -> str:
    "The word for the side in a name, in small letters: left, right, l, r, lt or rt; \"\" if it has none, or two."
    words = [] if _HEART.search(name) and not _BRAIN.search(name) else [m[0].lower() for m in _SIDE.finditer(name)]
    return words[0] if len(words) == 1 else ""

def lateral_pairs(
    names, # the class names; name i belongs to id i+1
) -> tuple[tuple[int, int], ...]: # (id of the left one, id of the right one), by the left one's id
    "Find the classes that are each other's mirror image by the words for left and right in their names."
    ids = {n.lower(): i for i, n in enumerate(names, 1)}
    pairs = []
    for name, i in ids.items():
        if (right := _OTHER.get(_side(name))) and (j := ids.get(_SIDE.sub(right, name))): pairs.append((i, j))
    return tuple(pairs)


# %%
test_eq(lateral_pairs(["kidney_left", "liver", "kidney_right", "bright_spot", "Left lung", "right lung"]), ((1, 3), (5, 6)))
test_eq(lateral_pairs(["parotid_right", "parotid_left", "rib_left"]), ((2, 1),))  # a rib without its partner stays single
test_eq(lateral_pairs(["parotid_l", "parotid_r", "Lens Lt", "Lens Rt", "vertebrae_L1", "vertebrae_R1"]), ((1, 2), (3, 4)))
test_eq(lateral_pairs(["heart_atrium_left", "heart_atrium_right", "heart_ventricle_left", "heart_ventricle_right"]), ())
test_eq(lateral_pairs(["lateral_ventricle_left", "lateral_ventricle_right"]), ((1, 2),))  # of the brain


# %% [markdown]
# ## Colours that can be told apart
#
# Fifty-four structures in one picture need fifty-four colours, none of which the eye takes for another. Equal steps in RGB are not equal
# steps for the eye; in the CIELAB space they nearly are, so distances are measured there. The choice is greedy: each structure takes the
# colour that is *farthest from all colours taken so far* and from black, the background. Greys are left out, because the CT underneath is
# grey.
#
# Lateral partners should look like relatives: the same hue, the left one darker, the right one lighter. So a pair takes two colours at
# once, from the same place of the colour wheel.

# %%
#| export
def _palette() -> tuple[np.ndarray, np.ndarray]:
    "Candidate colours in CIELAB, float [K,2,3] (a darker and a lighter one), and which a screen can show, bool [K,2]."
    hue, chroma, light = np.meshgrid(np.radians(np.arange(0, 360, 6)), np.arange(32, 100, 12), np.arange(36, 80, 6), indexing="ij")
    one = np.stack([light, chroma*np.cos(hue), chroma*np.sin(hue)], -1).reshape(-1, 3)
    lab = np.stack([one, one + [22, 0, 0]], 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # skimage warns of the very clipping that is sought
        back = rgb2lab(lab2rgb(lab))
    return lab, np.abs(back - lab).max(-1) < 1  # what a screen cannot show comes back as another colour


# %%
#| export
def _choose_colours(n: int, pairs) -> np.ndarray:
    "Colours for ids 0…n, uint8 [n+1,3], by farthest-point choice in CIELAB; partners share a hue."
    lab, shown = _palette()
    chosen = np.zeros((n + 1, 3))  # the background is black
    near = np.linalg.norm(lab, axis=-1)  # distance of each candidate to the nearest colour taken so far
    partner = dict(pairs)
    done = {b for _, b in pairs}
    for i in (i for i in range(1, n + 1) if i not in done):
        sides = [0, 1] if i in partner else [0]
        score = np.where(shown[:, sides], near[:, sides], -1).min(1)
        best = int(score.argmax())
        for side, id in zip(sides, (i, partner.get(i))):
            chosen[id] = lab[best, side]
            near = np.minimum(near, np.linalg.norm(lab - chosen[id], axis=-1))
    return (lab2rgb(chosen)*255).round().astype(np.uint8)


# %% [markdown]
# ## The class map
#
# It is frozen: two class maps with the same names are the same class map, and can be compared and hashed. What follows from the names is
# computed when first asked for. `colours` and `swap` are lookup tables: index them with a whole mask and every pixel is translated at
# once.

# %%
#| export
@dataclass(frozen=True)
class ClassMap:
    "What the numbers in a mask mean: id `i+1` is `names[i]`; 0 is background (or, in partly labelled data, unknown)."
    names: tuple[str, ...] # C unique names
    pairs: tuple[tuple[int, int], ...] = () # ids of lateral partners, (left, right)

    def __post_init__(self):
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "pairs", tuple((int(a), int(b)) for a, b in self.pairs))
        _check(self.names, self.pairs)

    def __len__(self): return len(self.names)
    def __repr__(self):
        return f"ClassMap({len(self)}: {', '.join(self.names[:3])}{', …' if len(self) > 3 else ''}; pairs: {len(self.pairs)})"

    def name(self, id: int) -> str:
        "The name of class `id`; 0 is the background."
        if not 0 <= id <= len(self): raise InputError(f"there is no class {id}; ids go from 1 to {len(self)} ({self.names[-1]})")
        return self.names[id - 1] if id else "background"

    def id(self, name: str) -> int:
        "The id, 1…C, of the class called `name`."
        if name not in self.names: raise did_you_mean("class", name, self.names)
        return self.names.index(name) + 1

    @cached_property
    def swap(self) -> np.ndarray:
        "The id each id becomes when the body is mirrored, int64 [C+1]."
        swap = np.arange(len(self) + 1)
        for a, b in self.pairs: swap[a], swap[b] = b, a
        return swap

    @property
    def unpaired_sides(self) -> tuple[str, ...]: return _unpaired_sides(self)  # names of one side without a partner: do not mirror these

    @cached_property
    def colours(self) -> np.ndarray: return _choose_colours(len(self), self.pairs)  # uint8 [C+1,3], row 0 black
    def colourise(self, mask) -> np.ndarray: return self.colours[np.asarray(mask)]  # integers [...] -> uint8 RGB [...,3]

    @classmethod
    def from_names(cls, names): return cls(names := tuple(names), lateral_pairs(names))  # pairs inferred from left and right
    @classmethod
    def from_json(cls, path): return cls.from_names(_read_names(path))
    def to_json(self, path): write_json({str(i): n for i, n in enumerate(self.names, 1)}, path)


# %% [markdown]
# The checks stand apart, so that the class stays readable. A class map on disk is the JSON object that the challenge's tools use, `{"1":
# "brainstem", "2": "spinal_cord", …}`. Its ids must run from 1 to C without a gap: a gap would be a class that nobody can have, and most
# likely is a slip of whoever wrote the file.

# %%
#| export
def _check(names, pairs):
    "Raise an `InputError` unless the names are unique and the pairs are disjoint pairs of ids."
    twice = [n for n, k in Counter(names).items() if k > 1]
    ids = [i for p in pairs for i in p]
    if not 1 <= len(names) <= 255: raise InputError(f"{len(names)} classes; expected 1 to 255, because masks hold 8-bit numbers")
    if twice: raise InputError(f"the class name {twice[0]!r} is given twice; give every class a name of its own")
    if len(set(ids)) < len(ids) or not set(ids) <= set(range(1, len(names) + 1)):
        raise InputError(f"lateral pairs {pairs} must use ids 1 to {len(names)}, each at most once")

def _unpaired_sides(cm: ClassMap) -> tuple[str, ...]:
    "The classes of one side whose partner is missing: a mirrored kidney_left, without a kidney_right to become, would be a lie."
    paired = {i for p in cm.pairs for i in p}
    return tuple(n for i, n in enumerate(cm.names, 1) if i not in paired and _side(n))

def _read_names(path) -> list[str]:
    "The names in a `class_names.json`, in the order of their ids."
    table = read_json(path)
    if not isinstance(table, dict) or not all(isinstance(v, str) for v in table.values()):
        raise InputError(f'{path}: expected an object from ids to names, such as {{"1": "liver", "2": "spleen"}}')
    ids = [str(i) for i in range(1, len(table) + 1)]
    if odd := sorted(set(table) - set(ids)):
        raise InputError(f"{path}: id {odd[0]!r} is not in 1…{len(table)}; number the {len(table)} classes from 1 without a gap")
    try: _check([table[i] for i in ids], ())
    except InputError as e: raise InputError(f"{path}: {e}") from None
    return [table[i] for i in ids]


# %%
cm = ClassMap.from_names(["brainstem", "spinal_cord", "parotid_right", "parotid_left"])
cm

# %%
test_eq((len(cm), cm.name(3), cm.id("parotid_left"), cm.name(0)), (4, "parotid_right", 4, "background"))
test_eq(cm.swap, [0, 1, 2, 4, 3])
test_eq(cm.swap[cm.swap], np.arange(5))  # mirrored twice is as before
test_eq((cm.unpaired_sides, ClassMap.from_names(["kidney_left", "liver", "heart_atrium_left"]).unpaired_sides), ((), ("kidney_left",)))
test_eq(cm.colourise([[0, 1], [2, 2]]).shape, (2, 2, 3))
test_eq(cm.colourise(0), [0, 0, 0])
with tempfile.TemporaryDirectory() as d:
    p = Path(d)/"class_names.json"
    cm.to_json(p)
    test_eq(ClassMap.from_json(p), cm)
    write_json({"1": "liver", "3": "spleen"}, p)
    try: ClassMap.from_json(p)
    except InputError as e: print(str(e).replace(d, "…"))
try: cm.id("parotid")
except InputError as e: print(e)

# %% [markdown]
# ## The 54 structures of the challenge
#
# The ENS/Raidium challenge numbers its structures in the alphabetical order of the [TotalSegmentator](https://arxiv.org/abs/2208.05868)
# (v1) classes, after merging the lung lobes, the vertebrae, the ribs of each side and the chambers of the heart. Some names are Latin or
# old-fashioned (*autochthon*: the deep muscles of the back; *iliac vena*: the iliac vein). They are kept, since files in the world use
# them.

# %%
#| export
RAIDIUM54 = ClassMap.from_names("""
    adrenal_gland_left adrenal_gland_right aorta autochthon_left autochthon_right brain clavicula_left clavicula_right colon duodenum
    esophagus face femur_left femur_right gallbladder gluteus_maximus_left gluteus_maximus_right gluteus_medius_left gluteus_medius_right
    gluteus_minimus_left gluteus_minimus_right heart hip_left hip_right humerus_left humerus_right iliac_artery_left iliac_artery_right
    iliac_vena_left iliac_vena_right iliopsoas_left iliopsoas_right inferior_vena_cava kidney_left kidney_right liver lung_left lung_right
    pancreas portal_vein_and_splenic_vein pulmonary_artery rib_left rib_right sacrum scapula_left scapula_right small_bowel spleen stomach
    trachea urinary_bladder vertebrae_cervical vertebrae_lumbar vertebrae_thoracic""".split())

# %% [markdown]
# The order is alphabetical, which guards against a slip of the list; the lateral pairs, found by name, are the sixteen that participants
# of the challenge list by number.

# %%
test_eq(len(RAIDIUM54), 54)
test_eq(list(RAIDIUM54.names), sorted(RAIDIUM54.names))
test_eq(RAIDIUM54.pairs, ((1, 2), (4, 5), (7, 8), (13, 14), (16, 17), (18, 19), (20, 21), (23, 24), (25, 26), (27, 28), (29, 30), (31, 32),
                          (34, 35), (37, 38), (42, 43), (45, 46)))
test_eq([RAIDIUM54.id(n) for n in ("brain", "iliac_vena_left", "liver", "vertebrae_thoracic")], [6, 29, 36, 54])


# %% [markdown]
# How well can the colours be told apart? In CIELAB a difference of about 2 is just noticeable side by side. The closest two of the 55 are
# several times that apart, and lateral partners are plainly different but of one hue.

# %%
def apart(colours): # smallest CIELAB distance between any two rows
    lab = rgb2lab(colours/255)
    gap = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
    return gap[~np.eye(len(gap), dtype=bool)].min()

lab = rgb2lab(RAIDIUM54.colours/255)
partners = [np.linalg.norm(lab[a] - lab[b]) for a, b in RAIDIUM54.pairs]
print(f"closest two of 55: {apart(RAIDIUM54.colours):.1f}; partners: {min(partners):.1f} to {max(partners):.1f}")
assert apart(RAIDIUM54.colours) > 12
test_eq(len(np.unique(RAIDIUM54.colours, axis=0)), 55)

# %%
rows = 14
fig, ax = plt.subplots(figsize=(11, 4.2), layout="constrained")
for i, name in enumerate(RAIDIUM54.names):
    x, y = divmod(i, rows)
    ax.add_patch(plt.Rectangle((4*x, -y - .9), .6, .8, color=RAIDIUM54.colours[i + 1]/255))
    ax.text(4*x + .7, -y - .5, f"{i + 1}  {name}", va="center", fontsize=8.5)
ax.set(xlim=(0, 16), ylim=(-rows, 0), title="RAIDIUM54: partners share a hue, left darker, right lighter")
ax.axis("off");

# %% [markdown]
# A mask can be mirrored now. Flip the pixels *and* translate the ids; forgetting the second half teaches a network that left and right do
# not matter. (In the challenge's frame, which is turned by 90 degrees, the anatomical mirror is a flip of the *rows*.) The picture also
# shows what no swap can mend: the mirrored liver lies on the left, as in one person of ten thousand. That is why mirroring is never on by
# default.

# %%
left, right, liver = (RAIDIUM54.id(n) for n in ("kidney_left", "kidney_right", "liver"))
mask = np.zeros((40, 40), np.uint8)
mask[4:12, 20:28], mask[28:36, 18:26], mask[22:38, 4:16] = left, right, liver
mirrored = RAIDIUM54.swap[mask[::-1]]
test_eq(RAIDIUM54.swap[mirrored[::-1]], mask)
fig, axes = plt.subplots(1, 3, figsize=(8, 2.9), layout="constrained")
for ax, m, t in zip(axes, (mask, mask[::-1], mirrored), ("a mask", "wrong: pixels flipped only", "right: ids swapped too")):
    ax.imshow(RAIDIUM54.colourise(m)); ax.set_title(t, fontsize=10); ax.axis("off")
    for id in (left, right, liver):
        if len(at := np.argwhere(m == id)):
            ax.text(*at.mean(0)[::-1], RAIDIUM54.name(id), color="w", ha="center", va="center", fontsize=7)

# %%
#| hide
import nbdev; nbdev.nbdev_export()
