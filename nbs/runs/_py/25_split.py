# %% [markdown]
# # Split
#
# > Which slices a run learns from, which it only looks at, and which it is scored on.

# %%
#| default_exp runs.split

# %%
#| export
from dataclasses import dataclass, replace

import numpy as np

from ctseg.core.errors import InputError
from ctseg.core.settings import Settings, setting
from ctseg.data.slices import SliceSet
from ctseg.data.splits import grouped_folds, select_labelled

# %%
#| hide
from ctseg.data.toys import toy_set


# %% [markdown]
# A few annotated slices are held out, whole patients at a time. They give the learning curve and, at the end, choose the decision rule. Unlabelled slices of the same patients are left out too. So the held-out score is that of patients of whom the network has seen nothing, like those it will meet.

# %%
#| export
class SplitSettings(Settings):
    "Which slices a run learns from."
    labelled: int = setting(
        0, "annotated images to use, held-out ones among them; the rest join the unlabelled; 0: all", low=0)
    unlabelled: int = setting(-1, "images without annotation to use, drawn by the seed; -1: all", low=-1)
    folds: int = setting(10, "groups of patients that the annotated images are split into", low=2)
    fold: int = setting(0, "the group that is held out for validation; -1: none", low=-1)
    rare_power: float = setting(0.0, "0: images alike; 0.5: those with rare structures more often", low=0)


# %%
for name in ("labelled", "folds", "fold"): print(name, "=", getattr(SplitSettings(), name))


# %% [markdown]
# And what it sees of them:

# %%
#| export
class DataSettings(SplitSettings):
    "What a run learns from."
    image_size: int = setting(
        0, "pixels a side that the network works at; 0: the images' own; -1: 128 where both sides are "
        "shorter and the encoder is pretrained (a U-Net then decodes to half of it), else their own",
        low=-1, high=1 << 14)
    teacher_weight: float = setting(
        1.0, "with --teacher: weight of answering as it does about classes that nobody examined", low=0)
    context: int = setting(
        0, "neighbouring slices that the network sees on each side, of volumes; 0: each slice alone",
        low=0, high=16)

    @property
    def channels(self) -> int:
        "Images that the network sees at once."
        return 2*self.context + 1

    def check(self) -> None:
        "`InputError` for an image size that no network works at."
        if 0 < self.image_size < 16:
            expected = "at least 16, 0 for the images' own, or -1 to enlarge small ones"
            raise InputError(f"image_size = {self.image_size}: expected {expected}")


# %%
print(DataSettings(folds=4, fold=1))
try: DataSettings(image_size=8)
except InputError as e: print(e)


# %% [markdown]
# A list of classes may be longer than what anybody has looked for. For a softmax that matters: a free pixel of a partly examined slice may be background *or any unknown class*. Where nothing ever says that a class is absent, the class serves as well as background, and the first weights decide which of the two covers the picture. Held-out slices would not tell, since nobody looked for the class there either. Such a class therefore counts as absent from every slice that is learnt from.

# %%
#| export
def unexamined_as_absent(
    slices: SliceSet,
    taught: np.ndarray | None = None, # bool [C]: classes that an earlier network teaches; None: none
) -> SliceSet:
    "The slices, with classes that were examined on none of them as absent from all that are annotated."
    never = ~slices.known.any(0)
    if taught is not None: never = never & ~taught
    for union, members in slices.classes.unions:  # who examined the one did not deny the other
        never[union - 1] = False
        if slices.known[:, union - 1].any():
            never[[member - 1 for member in members]] = False
    return replace(slices, known=slices.known | (slices.labelled[:, None] & never))


# %%
slices, truth = toy_set(12, 8)
known, masks = slices.known & [True, False, True], np.where(slices.masks == 2, 0, slices.masks)
print(
    unexamined_as_absent(replace(slices, known=known, masks=masks)).known.sum(0),
    "slices count as examined, class by class",
)


# %% [markdown]
# Folds are made of whole patients, see [splits](../data/60_splits.ipynb).

# %%
#| export
def in_fold(labelled: SliceSet, settings: DataSettings) -> np.ndarray:
    "bool [N]: the annotated slices that are held out. Where there are fewer groups than folds, each group is a fold."
    fold, folds = settings.fold, settings.folds
    too_high = f"fold = {fold}: there are {{}} folds, numbered from 0 (-1 holds out none)"
    if fold >= folds:
        raise InputError(too_high.format(folds))
    if fold < 0: return np.zeros(len(labelled), bool)
    try:
        fold_of = grouped_folds(labelled, folds, seed=0, at_most=True)
    except InputError as e:
        remedy = "choose fewer folds, or fold = -1 to hold out none (--set fold=-1)"
        raise InputError(f"{e}; {remedy}") from None
    made = int(fold_of.max()) + 1
    if fold >= made:
        raise InputError(too_high.format(made))
    return fold_of == fold


# %%
slices, truth = toy_set(16, 16)
print(in_fold(slices, DataSettings(folds=4)).astype(int))
try: in_fold(slices, DataSettings(folds=4, fold=4))
except InputError as e: print(e)


# %% [markdown]
# The split is a function of the slices, the settings and the seed.

# %%
#| export
@dataclass(frozen=True)
class Split:
    "The slices of a run, by what they are for."
    labelled: SliceSet  # annotated, to learn from
    holdout: SliceSet  # annotated, to be scored on
    unlabelled: SliceSet  # without annotation, to learn from
    held_out: np.ndarray  # int64: where the holdout lies among all slices
    kept_out: int  # unlabelled slices of held-out patients
    unexamined: list[str]  # classes that nobody looked for on any slice to learn from


# %%
#| export
def split_slices(
    slices: SliceSet,
    settings: DataSettings,
    seed: int = 0,
    taught: np.ndarray | None = None, # see `unexamined_as_absent`
) -> Split:
    "Divide the slices of a data set; `InputError` where that is impossible."
    if not slices.labelled.any():
        raise InputError("no image is annotated: there is nothing to learn from")
    if settings.labelled:
        slices = select_labelled(slices, settings.labelled, seed)
    labelled, unlabelled = slices[slices.labelled], slices[~slices.labelled]
    out = in_fold(labelled, settings)
    holdout, learn = labelled[out], labelled[~out]
    theirs = np.isin(unlabelled.groups, holdout.groups)
    unlabelled = unlabelled[~theirs]
    if settings.unlabelled >= 0:
        order = np.random.default_rng(seed).permutation(len(unlabelled))
        unlabelled = unlabelled[np.sort(order[:settings.unlabelled])]
    examined = learn.known.any(0)
    if taught is not None: examined = examined | taught
    unexamined = [name for name, seen in zip(slices.classes.names, examined) if not seen]
    held_out = np.flatnonzero(slices.labelled)[out]
    learn = unexamined_as_absent(learn, taught)
    return Split(learn, holdout, unlabelled, held_out, int(theirs.sum()), unexamined)


# %%
slices, truth = toy_set(40, 16)
split = split_slices(slices, DataSettings(folds=4))
print(
    f"{len(split.labelled)} to learn from, {len(split.holdout)} held out, {len(split.unlabelled)} without "
    f"annotation"
)
assert not set(split.holdout.groups) & (set(split.labelled.groups) | set(split.unlabelled.groups))
few, more = (
    split_slices(slices, DataSettings(fold=-1, unlabelled=n), seed=3).unlabelled.names for n in (4, 8)
)
assert len(few) == 4 and set(few) < set(more)  # rationed: more images contain the fewer
