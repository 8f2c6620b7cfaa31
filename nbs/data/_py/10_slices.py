# %% [markdown]
# # Slices
#
# > Images and masks with a third array beside them: what was examined.
#
# - skip_showdoc: true

# %%
#| default_exp data.slices

# %% [markdown]
# A mask stores 0 where an annotator outlined nothing. That 0 means *background*, **or a structure nobody was asked about**. Only the list of
# examined classes tells which, so this project keeps that list beside every mask, from the file to the loss.
#
# ## Three states
#
# Outlining 54 organs on thousands of slices is more work than any expert will do. Each annotator therefore outlines *some* organs. Every
# cell (image, class) is then in one of three states:
#
# | class was examined | pixels of it | state | what a loss may conclude |
# |---|---|---|---|
# | yes | some | **present** | these pixels are the class, all others are not |
# | yes | none | **absent** | no pixel of the image is the class: a certain, valuable negative |
# | no | (stored as 0) | **unknown** | nothing |
#
# In the challenge 4.4 % of the cells are present, 15.6 % absent and 80 % unknown. A network that reads unknown as background learns that
# what nobody looked for is not there.

# %%
#| export
import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from ctseg.core.anatomy import IGNORE, ClassMap
from ctseg.core.arguments import check_argument, checks_arguments, shown_argument
from ctseg.core.errors import InputError, did_you_mean
from ctseg.data.lazy import LazyPixels, blank_like, blocks, seen_values, take
from ctseg.data.stacks import Stacks

# %%
#| hide
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
from fastcore.test import test_eq, test_fail

from ctseg.core.errors import InputError
from ctseg.core.style import (
    class_legend,
    image_grid,
    overlay,
    show_image,
    show_states,
    state_legend,
    states_of,
)
from ctseg.core.toys import known_part, toy_slices
from ctseg.data.slices import SliceSet
from ctseg.data.stacks import stacks_of

# %% [markdown]
# Three slices of a chest show it: two lungs and a heart. On the first all three were examined and on the second only the heart. The third was never
# annotated.

# %%
images, truth = toy_slices(3, 64)
images, truth = (255*images[:, 0]).byte().numpy(), truth.byte().numpy()
known = np.array([[True, True, True], [False, False, True], [False, False, False]])
toy = SliceSet(images, known_part(truth, known), known, classes=["lung_right", "lung_left", "heart"])
toy

# %%
#| fig-alt: "Three toy slices with their masks: all examined, only the heart examined, never annotated"
fig, (panels,) = image_grid(1, 3)
for n, (ax, title) in enumerate(
    zip(panels, ("all three examined", "only the heart examined", "never annotated"))
):
    show_image(ax, overlay(toy.images[n], toy.masks[n], toy.classes), title)
class_legend(fig, toy.classes)

# %%
#| fig-alt: "A table of three slices and three classes: each cell is present, absent or unknown"
fig, ax = plt.subplots(figsize=(4.5, 1.8), layout="constrained")
show_states(ax, states_of(toy.present, toy.known), "what is known of each class on each slice")
ax.set_xticks(range(3), toy.classes.names)
ax.set_yticks(range(3), toy.names)
state_legend(fig)


# %% [markdown]
# ## Which classes have pixels
#
# *Present* follows from the [values that each mask holds](08_lazy.ipynb).

# %%
#| export
def present_classes(
    masks: np.ndarray, # uint8 [N,H,W]
    C: int, # number of classes
) -> np.ndarray: # bool [N,C]
    "Which classes have a pixel on each mask: uint8 [N,H,W] → bool [N,C]. Values above `C` are ignored."
    return seen_values(masks)[:, 1:C + 1]


# %% [markdown]
# Class 3 is on the first mask and class 1 on the second. No masks make an empty table.

# %%
two = np.array([[[0, 3], [3, 0]], [[1, 1], [0, 0]]], np.uint8)
test_eq(present_classes(two, 3), [[False, False, True], [True, False, False]])
test_eq(present_classes(two[:0], 3).shape, (0, 3))


# %% [markdown]
# A structure of a few pixels can vanish when a mask is made smaller, or when a neighbour is drawn over it. It is not absent for that: the
# annotator saw it. So it becomes unknown.

# %%
#| export
def known_after_resize(
    known: np.ndarray, # bool [N,C]
    drawn: np.ndarray, # bool [N,C]: the classes that had pixels before
    masks: np.ndarray, # uint8 [N,H,W]: the masks as they are now
) -> np.ndarray: # bool [N,C]
    "`known` [N,C] without the classes that were drawn and of which no pixel is left: these are not absent."
    lost = drawn & ~present_classes(masks, known.shape[1])
    return known & ~lost


# %% [markdown]
# Half the size loses the single pixel of class 1, so nobody can say any more that class 1 is there. Class 2, examined in vain, stays known.

# %%
spot = np.zeros((1, 4, 4), np.uint8)
spot[0, 1, 1] = 1  # one pixel of class 1, and class 2 examined in vain
both_known = np.array([[True, True]])
half = spot[:, ::2, ::2]
test_eq(known_after_resize(both_known, present_classes(spot, 2), half), [[False, True]])

# %% [markdown]
# ## What a set must fulfil
#
# Everything in `ctseg` passes slices around as one `SliceSet`, which checks itself when it is made. Two rules matter: a mask holds no id
# above the number of classes, except for 255, and **the class of every labelled pixel is known**. The second one finds masks and lists that do not belong
# together.
#
# A pixel of the value 255 is to be **ignored**: nothing is said about it, for any class. It marks an artefact, a doubtful border, or all that
# a scribble left open. No loss, metric or teacher looks at it.

# %%
#| export
_REMEDIES = {
    "images": "grey values from 0 to 255, of an array; Hounsfield units need a window first",
    "masks": "the number of a class in each pixel, 0 for none",
    "known": "give np.asarray(known, bool), 'all' or 'present'",
    "groups": "give np.asarray(groups, np.int64), a number for each patient",
}

def _is_array(array) -> bool:
    "Is this an array whose pixels all count?"
    return isinstance(array, np.ndarray|LazyPixels) and not isinstance(array, np.ma.MaskedArray)

def _check_array(name: str, array, dtype, shape):
    "`InputError` unless a field of a `SliceSet` is an array of this type and shape."
    is_array = _is_array(array)
    if is_array and array.dtype == dtype and array.shape == shape:
        return
    given = f"{array.dtype} {list(array.shape)}" if is_array else shown_argument(array)
    expected = f"{np.dtype(dtype)} {list(shape)}: {_REMEDIES[name]}"
    raise InputError(f"SliceSet.{name} is {given}; expected {expected}")


# %%
#| export
def _check_images(images):
    "`InputError` unless these are the images of a `SliceSet`, [N,H,W]."
    shape = images.shape if _is_array(images) else ("N", "H", "W")
    if len(shape) != 3:
        remedy = "take out the axis of colours or channels"
        if len(shape) == 2: remedy = "one image is images[None]"
        raise InputError(f"SliceSet.images has {len(shape)} dimensions; expected 3: [N,H,W]; {remedy}")
    _check_array("images", images, np.uint8, shape)
    if 0 in shape[1:]:
        raise InputError(f"SliceSet.images is {list(shape)}; expected images of at least one pixel")


# %% [markdown]
# Masks in another type are refused, since they may hold anything:

# %%
test_fail(
    lambda: _check_array("masks", np.zeros((2, 4, 4)), np.uint8, (2, 4, 4)),
    contains="is float64 [2, 4, 4]; expected uint8",
)


# %%
#| export
def highest_label(masks: np.ndarray) -> int:
    "The highest class id in masks of any shape, 0 where there is none; pixels to be ignored (255) are no class."
    if isinstance(masks, LazyPixels):
        masks = np.flatnonzero(seen_values(masks).any(0))
    top = int(np.max(masks, initial=0))
    if top < IGNORE:
        return top
    return int(np.max(masks, initial=0, where=np.asarray(masks) != IGNORE))


# %% [markdown]
# A pixel to be ignored is no class.

# %%
test_eq((highest_label(np.array([0, 3, IGNORE])), highest_label(np.array([IGNORE]))), (3, 0))


# %%
#| export
def _check_ids(slices: "SliceArrays"):
    "`InputError` if a mask holds an id above C."
    C = len(slices.classes)
    if highest_label(slices.masks) <= C: return
    n = int(seen_values(slices.masks)[:, C + 1:IGNORE].any(1).argmax())
    mask = slices.masks[n]
    y, x = np.argwhere((mask > C) & (mask != IGNORE))[0]
    raise InputError(f"mask of {slices.names[n]} holds {mask[y, x]} at ({y}, {x}); there are {C} classes")


def _check_examined(slices: "SliceArrays"):
    "`InputError` if a mask has pixels of a class that is not known on its image."
    contradicted = np.argwhere(slices.present & ~slices.known)
    if not len(contradicted): return
    n, column = contradicted[0]
    named = f"class {column + 1} ({slices.classes.name(column + 1)})"
    raise InputError(f"mask of {slices.names[n]} has pixels of {named}, which known says was not examined")


# %%
#| export
def _check_unions(slices: "SliceArrays"):
    "`InputError` if a mask has pixels of a union although all of its members were examined."
    classes = slices.classes
    for union, members in classes.unions:
        apart = slices.present[:, union - 1] & slices.known[:, [member - 1 for member in members]].all(1)
        if apart.any():
            where = slices.names[int(apart.argmax())]
            raise InputError(f"mask of {where} has pixels of the union {classes.name(union)}, "
                             "but known says that all of its members were examined; say which they are")


def _check_masks(slices: "SliceArrays"):
    "`InputError` if masks and `known` contradict the classes or each other."
    _check_ids(slices)
    _check_examined(slices)
    _check_unions(slices)


# %%
#| export
def _check_stacks(stacks: Stacks|None, images):
    "`InputError` unless there is a stack of the right size for each of the images [N,H,W]."
    check_argument("SliceSet.stacks", stacks, Stacks | None)
    if stacks is None or (len(stacks), *stacks.shape[2:]) == images.shape:
        return
    expected = f"one for each of the images {list(images.shape)}"
    raise InputError(f"SliceSet.stacks is {stacks}; expected {expected}")


# %%
pair = stacks_of(two, np.zeros(2, int), np.arange(2), 1)
test_fail(lambda: _check_stacks(pair, two[:1]), contains="one for each of the images [1, 2, 2]")


# %% [markdown]
# ## What may be left out
#
# Names, groups and classes have harmless defaults. `known` has none: where the masks alone do not say what was examined, somebody must.
# The words `"all"` and `"present"` say it for the two common cases. Images without masks need no `known`, for nothing was examined on them.

# %%
#| export
def _as_classes(classes, masks, known) -> ClassMap:
    "The classes as a `ClassMap`; if not given, `class_1` … for as many as `known` or the masks show."
    if isinstance(classes, ClassMap):
        return classes
    if classes is not None:
        return ClassMap.from_names(classes)
    if isinstance(known, np.ndarray) and known.ndim == 2:
        count = known.shape[1]
    else:
        count = 0 if masks is None else highest_label(masks)
    if not count:
        raise InputError("SliceSet: the masks show no class; give classes=, a ClassMap or a list of names")
    return ClassMap.from_names(f"class_{c}" for c in range(1, count + 1))


# %% [markdown]
# Without names, the classes are called by number. Masks without a structure say nothing about classes.

# %%
test_eq(_as_classes(None, two, "all").names, ("class_1", "class_2", "class_3"))
test_fail(lambda: _as_classes(None, 0*two, None), contains="give classes=")


# %%
#| export
def _as_known(known, masks: np.ndarray, C: int) -> np.ndarray:
    "`known` as it is, or made from the words \"all\" and \"present\"."
    if known is None:
        raise InputError("SliceSet: known is missing, so absent cannot be told from unknown; "
                         "give bool [N,C], 'all' (every class was examined on every slice) "
                         "or 'present' (only classes with pixels)")
    if not isinstance(known, str):
        return known
    if known == "all":
        return np.ones((len(masks), C), bool)
    if known == "present":
        return present_classes(masks, C)
    raise did_you_mean("value of known", known, ("all", "present"))


# %% [markdown]
# `present` takes for known what has pixels. A misspelt word is answered with the nearest one.

# %%
test_eq(_as_known("present", two, 3), present_classes(two, 3))
test_fail(lambda: _as_known("al", two, 3), contains="did you mean all")


# %%
#| export
def _as_names(names, n: int) -> tuple[str, ...]:
    "The names of n images; if not given, `0.png`, `1.png`, …"
    if names is None:
        return tuple(f"{i}.png" for i in range(n))
    check_argument("SliceSet.names", names, Sequence[str])
    names = tuple(names)
    check_argument("SliceSet.names", names, Sequence[str])  # a generator has been read now
    if len(names) != n:
        raise InputError(f"SliceSet.names has {len(names)} names; expected one for each of {n} images")
    return names


# %%
test_fail(lambda: _as_names("ab", 2), contains="expected several, each a text")
test_fail(lambda: _as_names(["a.png", 3], 2), contains="expected several, each a text")


# %% [markdown]
# With these, six complete and checked fields are made of whatever was given.

# %%
#| export
def _complete(images, masks, known, names, groups, classes) -> dict:
    "The six fields of a `SliceSet`, checked, from what its caller gave."
    _check_images(images)
    n = len(images)
    if masks is None:
        masks = blank_like(images)
        if known is None:
            C = len(_as_classes(classes, masks, known))
            known = np.zeros((n, C), bool)
    _check_array("masks", masks, np.uint8, images.shape)
    classes = _as_classes(classes, masks, known)
    known = _as_known(known, masks, len(classes))
    _check_array("known", known, np.bool_, (n, len(classes)))
    groups = np.arange(n) if groups is None else groups
    _check_array("groups", groups, np.int64, (n,))
    names = _as_names(names, n)
    return dict(images=images, masks=masks, known=known, names=names, groups=groups, classes=classes)


# %%
fields = _complete(two, two, "present", None, None, None)
print(
    {
        name: value if isinstance(value, tuple) else np.shape(value)
        for name, value in fields.items()
        if name != "classes"
    }
)


# %% [markdown]
# ## SliceSet
#
# Images and masks stay 8-bit, a fourth to an eighth of the memory. They are arrays, or [lazy pixels](08_lazy.ipynb) that lie in a
# [store](74_store.ipynb) on a disk. `groups` says which slices are related and must not be torn apart by a
# split. The fields come first, in a class of their own, then what can be asked about them, then the smaller and larger sets that one makes of a set.

# %%
#| export
@dataclass(frozen=True, init=False, repr=False, eq=False)
class SliceArrays:
    "The fields of a `SliceSet`, completed and checked."
    images: np.ndarray # uint8 [N,H,W]; or `LazyPixels`
    masks: np.ndarray # uint8 [N,H,W], or lazy; 0 = background or unknown, 255 = to be ignored
    known: np.ndarray # bool [N,C]: class c+1 was examined on image n
    names: tuple[str, ...] # file names
    groups: np.ndarray # int64 [N]: slices of one patient, or near-duplicates, share a number
    classes: ClassMap # the C classes
    stacks: Stacks|None # images with those beside them; None: not looked up
    present: np.ndarray = field(init=False) # bool [N,C]: the classes that have pixels

    def __init__(self,
        images: np.ndarray|LazyPixels,
        masks: np.ndarray|LazyPixels|None = None,
        known: np.ndarray|str|None = None,
        names: Sequence[str]|None = None,
        groups: np.ndarray|None = None,
        classes: ClassMap|Sequence[str]|None = None,
        stacks: Stacks|None = None,
    ):
        """Check and keep the arrays; what may be left out is given a default.

        images, masks: uint8 `[N, H, W]`; no masks: nothing was examined. known: bool `[N, C]`, "all" or "present";
        needed beside masks. groups: int64 `[N]`; None: every slice by itself. names: else 0.png, 1.png, …
        """
        vars(self).update(_complete(images, masks, known, names, groups, classes))
        vars(self)["stacks"] = stacks
        vars(self)["present"] = present_classes(self.masks, len(self.classes))
        _check_masks(self)
        _check_stacks(stacks, self.images)


# %% [markdown]
# A mask may not hold what `known` says was never examined.

# %%
test_eq(SliceArrays(two, two, "present").present, [[False, False, True], [True, False, False]])
test_fail(lambda: SliceArrays(two, two, np.zeros((2, 3), bool)), contains="which known says was not examined")


# %%
#| export
def _describe(slices: SliceArrays) -> str:
    "One line for people: how many slices, what is known of them, which classes."
    height, width = slices.images.shape[1:]
    groups = len(np.unique(slices.groups))
    names = ", ".join(slices.classes.names[:4])
    if len(slices.classes) > 4:
        names += ", …"
    present = slices.present.sum()
    absent = (slices.known & ~slices.present).sum()
    unknown = (~slices.known).sum()
    cells = f"{present} present, {absent} absent, {unknown} unknown"
    labelled = slices.known.any(1).sum()
    return (f"SliceSet({len(slices.images)} slices {height}x{width}, {labelled} labelled, "
            f"{len(slices.classes)} classes, {groups} groups; cells: {cells}; {names})")


# %%
print(_describe(SliceArrays(two, two, "present")))


# %%
#| export
def _check_joinable(a: SliceArrays, b: SliceArrays):
    "`InputError` for sets with other classes, or with images of another size."
    if a.classes != b.classes:
        raise InputError(f"cannot join sets with other classes: {a.classes} and {b.classes}")
    sizes = ["x".join(map(str, slices.images.shape[1:])) for slices in (a, b)]
    if sizes[0] != sizes[1]:
        raise InputError(f"cannot join images of {sizes[0]} and {sizes[1]} pixels")
    if a.stacks is not None or b.stacks is not None:
        raise InputError("cannot join slices whose neighbours are looked up; join them first")


# %% [markdown]
# Slices of two sizes cannot be joined:

# %%
wider = SliceArrays(np.zeros((1, 2, 3), np.uint8), classes=["class_1", "class_2", "class_3"])
test_fail(
    lambda: _check_joinable(wider, SliceArrays(two, two, "all")), contains="images of 2x3 and 2x2 pixels"
)


# %%
#| export
def content_hash(slices: SliceArrays) -> str:
    "A hash of everything in the set, 32 hex digits, computed by reading it a block at a time."
    header = (slices.images.shape, slices.names, slices.classes.names, slices.classes.pairs)
    if slices.classes.unions:
        header += (slices.classes.unions,)
    digest = hashlib.sha256(repr(header).encode())
    for pixels in (slices.images, slices.masks):
        for block in blocks(pixels):
            digest.update(np.ascontiguousarray(block))
    for array in (slices.known, slices.groups):
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()[:32]


# %%
same = [content_hash(SliceArrays(images, two, "all")) for images in (two, two.copy(), two + 1)]
test_eq((same[0] == same[1], same[0] == same[2]), (True, False))


# %%
#| export
class AnnotatedSlices(SliceArrays):
    "What can be asked about a set and each of its slices."
    @property
    def labelled(self) -> np.ndarray:
        "bool [N]: the slices on which at least one class was examined."
        return self.known.any(1)

    @property
    def ignored(self) -> np.ndarray:
        "bool [N]: the slices that have pixels to be ignored."
        return seen_values(self.masks)[:, IGNORE]

    @property
    def image_shape(self) -> tuple[int, int]:
        "Height and width of the images."
        return self.images.shape[1:]

    @property
    def context(self) -> int:
        "How many slices on each side are seen with each one."
        return 0 if self.stacks is None else self.stacks.context

    def seen(self, context: int) -> np.ndarray|LazyPixels|Stacks:
        "What a network sees: the images [N,H,W], or with a context [N,K,H,W]; `InputError` where it is not known."
        if not context: return self.images
        if self.stacks is not None: return self.stacks.narrowed(context)
        raise InputError(f"context = {context}: nobody looked up which slices lie beside these; "
                         "give the folder they were imported into, or see ctseg.io.neighbours")

    def fingerprint(self) -> str:
        "The hash of everything in the set; a set from a store remembers it."
        remembered = vars(self).get("_fingerprint")
        return remembered or content_hash(self)


# %% [markdown]
# A slice on which every pixel is to be ignored is labelled, and nothing is present on it.

# %%
some = AnnotatedSlices(two, np.full_like(two, IGNORE), "all", classes=["liver"])
test_eq((some.labelled.all(), some.ignored.all(), some.present.any()), (True, True, False))

# %% [markdown]
# Slices of a volume may carry [the slices beside them](09_stacks.ipynb). Only a network that was built for these sees them; whoever asks for what nobody
# looked up gets an error.

# %%
seen_together = AnnotatedSlices(two, classes=["liver"], stacks=pair)
print(seen_together.context, seen_together.seen(1), seen_together.seen(0).shape)
test_fail(lambda: some.seen(1), contains="nobody looked up")

# %%
#| export
_ARRAYS = ("images", "masks", "known", "groups")  # with a row for each slice

class SliceSet(AnnotatedSlices):
    """N slices of one size with what is known of them, checked when made (`InputError`) and frozen.

    Index it with ints, bools or a slice to get a smaller set. Compare two sets by `fingerprint()`."""
    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index) -> "SliceSet":
        index = np.arange(len(self))[index].reshape(-1)
        parts = {name: take(getattr(self, name), index) for name in _ARRAYS}
        if self.stacks is not None:
            parts["stacks"] = self.stacks.take(index)
        return replace(self, **parts, names=[self.names[i] for i in index])

    def __repr__(self) -> str:
        return _describe(self)

    @checks_arguments
    def concat(self, other: "SliceSet") -> "SliceSet":
        "The slices of both, `other`'s last. Equal group numbers mean the same group."
        _check_joinable(self, other)
        joined = {name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in _ARRAYS}
        return SliceSet(**joined, names=self.names + other.names, classes=self.classes)

    def in_memory(self) -> Self:
        "The same slices as arrays; these slices themselves where they are."
        if isinstance(self.images, np.ndarray) and isinstance(self.masks, np.ndarray):
            return self
        return replace(self, images=np.asarray(self.images), masks=np.asarray(self.masks))


# %% [markdown]
# The three slices of the beginning once more, now as the class above makes them:

# %%
toy = SliceSet(images, known_part(truth, known), known, classes=toy.classes)
print(toy)
print(len(toy), "slices, the last of them alone:", toy[-1])

# %% [markdown]
# A set that breaks a rule cannot be made. Every mistake is one line that says what was expected.

# %%
wrong = {
    "masks of another type": {"masks": toy.masks.astype(int)},
    "a pixel of an unknown class": {"known": ~toy.known},
    "an id above C": {"masks": toy.masks + np.uint8(3)},
    "too few names": {"names": toy.names[:2]},
}
for change in wrong.values():
    try:
        replace(toy, **change)
    except InputError as e:
        print("-", e)
    else:
        raise AssertionError(change)
test_eq(toy.labelled, [True, True, False])

# %% [markdown]
# What may be left out:

# %%
whole = SliceSet(images, truth, known="all")
test_eq((whole.names, whole.groups.tolist()), (("0.png", "1.png", "2.png"), [0, 1, 2]))
test_eq(whole.classes.names, ("class_1", "class_2", "class_3"))
test_eq(whole.known.all(), True)
test_eq(SliceSet(images, truth, "present").known, whole.present)
test_eq(SliceSet(images, classes=toy.classes).known.any(), False)  # images alone: nothing was examined
test_fail(lambda: SliceSet(images, truth), contains="absent cannot be told from unknown")

# %% [markdown]
# Some of the slices, two sets joined, and the fingerprint. A run writes the fingerprint down, so that one can tell later whether two
# results came from the same data.

# %%
test_eq(toy[[2, 0]].names, ("2.png", "0.png"))
test_eq(len(toy[toy.labelled]), 2)
test_eq(len(toy[1]), 1)
both = toy[:2].concat(toy[2:])
test_eq(both.fingerprint(), toy.fingerprint())
assert toy[[1, 0]].fingerprint() != toy[[0, 1]].fingerprint()
test_fail(lambda: toy.concat(whole), contains="other classes")


# %% [markdown]
# ## With their neighbours
#
# Two functions give slices the slices beside them. Neither changes what was annotated, so the fingerprint stays, and nothing is read again.

# %%
#| export
def with_stacks(slices: SliceSet, stacks: Stacks|None) -> SliceSet:
    "The same slices, with the same fingerprint, each seen in one of `stacks`."
    _check_stacks(stacks, slices.images)
    new = copy.copy(slices)
    vars(new)["stacks"] = stacks
    return new

def with_context(slices: SliceSet, context: int) -> SliceSet:
    "The same slices, each seen with so many on each side; `InputError` where these are not known."
    if context == slices.context: return slices
    return with_stacks(slices, slices.seen(context) if context else None)


# %%
seen = with_stacks(toy, stacks_of(toy.images, np.zeros(3, int), np.arange(3), 2))[[2]]
test_eq((seen.context, with_context(seen, 1).context, with_context(seen, 0).stacks), (2, 1, None))
test_eq(with_context(seen, 1).stacks[0], np.stack([toy.images[1], toy.images[2], 0*toy.images[0]]))
