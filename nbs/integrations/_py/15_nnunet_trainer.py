# %% [markdown]
# # Trainers for nnU-Net
#
# > `nnUNetTrainerPartial` and `nnUNetTrainerPartialSemi`: partial labels and an averaged teacher on nnU-Net's own engine.

# %%
#| default_exp integrations.nnunet_trainer

# %%
#| export
import functools
import importlib

from ctseg.core.errors import InputError, did_you_mean
from ctseg.integrations.nnunet_partial import PartialTrainer
from ctseg.integrations.nnunet_teacher import SemiTrainer

# %%
#| hide
from fastcore.test import test_fail

# %% [markdown]
# nnU-Net plans, preprocesses, augments, trains, resumes and predicts. All of that stays as it is. What it lacks is put in where it belongs:
#
# | nnU-Net | here |
# |---|---|
# | its loss | [the same labels with what was examined](12_nnunet_known.ipynb), at each resolution |
# | the cases it draws | those with labels; semi-supervised: beside them those on which something was not examined |
# | pseudo Dice after an epoch, scores at the end | of examined classes only |
# | weights in the checkpoint | semi-supervised: the average, which is the teacher too |
# | the trainer's name in the checkpoint | nnU-Net's own, so that predicting needs nothing of this package |
#
# [Partial labels](13_nnunet_partial.ipynb) and [the teacher](14_nnunet_teacher.ipynb) have pages of their own.

# %% [markdown]
# nnU-Net's own class is imported when a trainer is asked for.

# %%
#| export
TRAINERS = {"nnUNetTrainerPartial": PartialTrainer, "nnUNetTrainerPartialSemi": SemiTrainer}

@functools.cache
def trainer_class(name: str) -> type:
    "A trainer of nnU-Net by its name. Raises `InputError` for another name, or if nnU-Net is not installed."
    if name not in TRAINERS: raise did_you_mean("trainer", name, TRAINERS)
    try:
        module = importlib.import_module("nnunetv2.training.nnUNetTrainer.nnUNetTrainer")
    except ImportError as e:
        raise InputError(f"{name} needs nnU-Net ({e}); run: pip install 'ctseg[nnunet]'") from None
    parts = (TRAINERS[name], module.nnUNetTrainer)
    return type(name, parts, {"__module__": __name__, "__doc__": TRAINERS[name].__doc__})


# %%
test_fail(lambda: trainer_class("nnUNetTrainerPartialSemy"), contains="did you mean nnUNetTrainerPartialSemi")
