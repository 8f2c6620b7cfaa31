# %% [markdown]
# # Recipes by name
#
# > Named, frozen choices of method, network, loss, augmentation and schedule.

# %%
#| default_exp recipes.table

# %%
#| export
from dataclasses import replace
from pathlib import Path

from ctseg.core.arguments import checks_arguments
from ctseg.core.errors import did_you_mean
from ctseg.losses.registry import DiceSettings, MarginalSettings, MaskedSettings
from ctseg.methods.mean_teacher import MeanTeacherSettings
from ctseg.methods.self_training import SelfTrainingSettings
from ctseg.methods.teacher_student import PretrainFinetuneSettings, TeacherStudentSettings
from ctseg.methods.unimatch import UniMatchSettings
from ctseg.models.settings import EncoderSettings
from ctseg.runs.folder import read_spec
from ctseg.runs.old_recipe import OLD_NAMES
from ctseg.runs.recipe import Recipe, RuleSettings
from ctseg.runs.split import DataSettings

# %%
#| hide
import pandas as pd
from fastcore.test import test_eq

from ctseg.core.errors import InputError
from ctseg.runs.recipe import recipe_fields

# %% [markdown]
# A comparison of methods needs all of them with everything else equal. A user needs one name to type. Both are a [recipe](../runs/10_recipe.ipynb).

# %%
#| export
LOG_DICE = MarginalSettings(log_dice=True)
ONE_VIEW = UniMatchSettings(views=1, feature_dropout=0)
SHORT = replace(ONE_VIEW, second_phase=0.5, unlabelled_passes=15)  # longer where few slices are annotated
ORIGINAL = dict(loss=DiceSettings(), rule=RuleSettings(tune_rule=False))
LITE = EncoderSettings(
    name="unet:tf_efficientnet_lite0", light=True, frozen_levels=2, fallback="attunet")
PRETRAINED = dict(model=LITE, data=DataSettings(image_size=-1))
BY_SIZE = replace(LITE, from_size=128)

DEFAULT_RECIPE = "ctseg"
OURS = [
    Recipe(
        "ctseg",
        "supervised (`marginal-log`), then a phase with all images, half as long or, where few are "
        "annotated, longer, in which a sure teacher fills in what nobody examined (UniMatch); the Attention "
        "U-Net, and from 128 pixels on a pretrained encoder (extra `weights`)",
        method=SHORT, loss=LOG_DICE, model=BY_SIZE),
    Recipe(
        "ctseg-pretrained",
        "`ctseg` with the pretrained encoder for images of any size; those under 128 pixels are enlarged",
        method=SHORT, loss=LOG_DICE, **PRETRAINED),
    Recipe(
        "ctseg-1h", "an hour of a T4 at most (estimated): `marginal-log` at half the width",
        loss=LOG_DICE).change(width=32, epochs=300),
    Recipe(
        "ctseg-30h",
        "thirty hours of a T4 at most (estimated): `ctseg`, four times as long, "
        "the second phase as long as the first",
        method=ONE_VIEW, loss=LOG_DICE).change(epochs=360),
]

# %%
print([recipe.name for recipe in OURS])

# %%
#| export
BASELINES = [
    Recipe(
        "original-attunet",
        "the original baseline: Dice loss only, zeros read as background, argmax",
        **ORIGINAL),
    Recipe(
        "masked", "supervised; sigmoid outputs, Dice and binary cross-entropy on known cells",
        loss=MaskedSettings()),
    Recipe(
        "masked-log",
        "supervised; `masked` with the logarithm of the Dice, so that a missed class keeps its gradient",
        loss=MaskedSettings(log_dice=True)),
    Recipe(
        "marginal", "supervised; softmax outputs, marginal cross-entropy and Dice on known cells",
        loss=MarginalSettings()),
    Recipe(
        "marginal-log",
        "supervised; `marginal` with the logarithm of the Dice; "
        "with the phantom's 54 structures the better one",
        loss=LOG_DICE),
]

# %%
print([recipe.name for recipe in OURS + BASELINES])

# %% [markdown]
# The semi-supervised methods of the literature, in the original's form and with the same loss as `marginal-log`.

# %%
#| export
SEMI_SUPERVISED = [
    Recipe(
        "original-teacher-student",
        "the original method: teacher, the 800 surest slices, student with Dice + L2",
        method=TeacherStudentSettings(confidence="max"), **ORIGINAL),
    Recipe(
        "original-pretrain-finetune", "the original's variant: pretrain on pseudo-labels, fine-tune on truth",
        method=PretrainFinetuneSettings(confidence="max"), **ORIGINAL),
    Recipe(
        "teacher-student",
        "the original method with our loss, which leaves the unknown of annotated slices unknown, "
        "and Soft Dice Confidence",
        method=TeacherStudentSettings(), loss=LOG_DICE),
    Recipe(
        "mean-teacher", "consistency with the student's own average wherever the truth is silent",
        method=MeanTeacherSettings(ramp=0.3), loss=LOG_DICE),
    Recipe(
        "unimatch", "a sure teacher completes the truth for two strong views",
        method=UniMatchSettings(), loss=LOG_DICE),
    Recipe(
        "self-training", "out-of-fold teachers complete slices cell by cell; a noisy student; a fine-tune",
        method=SelfTrainingSettings(), loss=LOG_DICE),
]

RECIPES = {recipe.name: recipe for recipe in [*OURS, *BASELINES, *SEMI_SUPERVISED]}

# %%
pd.set_option("display.max_colwidth", None)
pd.DataFrame(
    [dict(name=r.name, method=r.method.name, loss=r.loss.name, about=r.about) for r in RECIPES.values()]
).set_index("name")


# %% [markdown]
# What each step of the default brings is measured with [few and with many annotated slices](../benchmarks/realct_semi.ipynb), with [54 structures](../benchmarks/phantom_semi.ipynb), and [choice by choice](../benchmarks/ablations.ipynb). The hours in the names are arithmetic, not measurement, and cautious; `--time-limit` stops a run in time in any case.
#
# A recipe is found by its name, or taken from a run.

# %%
#| export
@checks_arguments
def get_recipe(name: str | Path) -> Recipe:
    "The recipe called `name`, or that of a run, by the path of its `recipe.json`; an unknown name shows the nearest ones."
    if str(name).endswith(".json"): return read_spec(Path(name))["recipe"]
    name = OLD_NAMES.get(str(name), str(name))
    if name not in RECIPES: raise did_you_mean("recipe", name, RECIPES)
    return RECIPES[name]


# %%
try: get_recipe("unimach")
except InputError as e: print(e)
test_eq(get_recipe("seed-attunet"), get_recipe("original-attunet"))
changed = [row for row in recipe_fields(get_recipe("ctseg")) if row[1] != row[2]]
pd.DataFrame(changed, columns=["setting", "value", "default", "meaning"]).set_index("setting")
