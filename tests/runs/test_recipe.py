"Nested recipes: settings by flat and dotted names, choices, and files."
import copy
import inspect
import json
import pickle

import pytest

from ctseg.cli import training as cli_training
from ctseg.core.errors import InputError
from ctseg.core.settings import describe
from ctseg.recipes.table import RECIPES, get_recipe
from ctseg.runs.options import OPTIONS
from ctseg.runs.recipe import (
    GROUPS, Recipe, apply_settings, locate, recipe_dict, recipe_fields, recipe_from,
)


def test_every_setting_of_every_recipe_says_what_it_means():
    for recipe in RECIPES.values():
        assert not [name for name, _, _, meaning in recipe_fields(recipe) if not meaning]


def test_a_flat_name_is_enough_for_every_setting_of_every_recipe():
    for recipe in RECIPES.values():
        for group in GROUPS:
            for info in describe(type(getattr(recipe, group))):
                if info.name != "name":
                    assert locate(recipe.groups(), info.name) == (group, info.name), (recipe.name, info.name)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_its_file(name):
    recipe = get_recipe(name)
    assert recipe_from(json.loads(json.dumps(recipe_dict(recipe)))) == recipe
    assert pickle.loads(pickle.dumps(recipe)) == recipe == copy.deepcopy(recipe)


def test_choices_come_before_what_they_have():
    recipe = apply_settings(Recipe(), ["tau=0.8", "method=unimatch", "log_dice=yes", "loss=marginal"])
    assert recipe.method.tau == 0.8 and recipe.loss.name == "marginal" and recipe.loss.log_dice


def test_another_choice_keeps_what_was_changed_and_both_have():
    changed = get_recipe("unimatch").change(consistency=0.5, cutmix=0.25).change(method="mean-teacher")
    assert changed.method.consistency == 0.5 and not hasattr(changed.method, "cutmix")
    assert get_recipe("marginal-log").change(loss="masked").loss.log_dice
    # a default is no choice of the user's
    assert get_recipe("ctseg").change(method="mean-teacher").method.ramp == 0.1


@pytest.mark.parametrize("settings, message", [
    (["tau=0.9"], "the method supervised has none of that name, only unimatch"), (["epochs=ten"], "epochs takes a whole number"),
    (["method.lr=1"], "unknown setting of method"), (["shedule.lr=1"], "did you mean schedule"), (["lr"], "expected KEY=VALUE"),
    (["method=unimach"], "did you mean unimatch"), (["lr=nan"], "lr = nan: expected a finite number, at least 0"), (["image_size=8"], "at least 16"),
    (["image_size=99999"], "expected -1 to 16384"), ([f"epochs={2**70}"], "fewer digits"), (["epochs=" + "9"*400], "fewer digits"),
    (["seed=3"], "give it as --seed"), (["time_limit=1h"], "--time-limit"), (["EPOCHS=3"], "did you mean epochs "),
    (["lr=inf"], "a finite number"),
    (["completion=0.9"], "teacher_weight"), (["data.completion=0.9"], "teacher_weight"), (["method=self-training", "gate=0.7"], "cell_confidence"),
    (["mirror=up"], "mirror"), (["reduction=pixel"], "unknown reduction"), (["precision=fp8"], "unknown precision")])
def test_mistakes_are_one_line(settings, message):
    with pytest.raises(InputError, match=message) as e: apply_settings(Recipe(), settings)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("foreign, ours", [
    ("learning_rate", "lr"), ("learning-rate", "lr"), ("initialLr", "lr"), ("lr0", "lr"), ("bs", "batch_size"), ("batch", "batch_size"),
    ("train_batch_size", "batch_size"), ("num_epochs", "epochs"), ("iterations", "epochs"), ("wd", "weight_decay"), ("optimizer", "weight_decay"),
    ("grad_clip", "clip"), ("max_grad_norm", "clip"), ("ema_decay", "ema"), ("amp", "precision"), ("fp16", "precision"), ("accumulate", "pieces"),
    ("img_size", "image_size"), ("patch_size", "image_size"), ("backbone", "model"), ("encoder_name", "model"), ("network", "model"),
    ("criterion", "loss"), ("loss_fn", "loss"), ("augmentation", "augment"), ("flip", "mirror"), ("kfold", "folds"), ("val_fraction", "fold"),
    ("dice_weight", "w_dice"), ("random_state", "--seed"), ("gpus", "--device"), ("checkpoint", "--init"), ("wandb", "--log"),
    ("output_dir", "--out"), ("max_time", "--time-limit"), ("wieght_decay", "weight_decay")])
def test_a_name_of_another_program_is_told_ours(foreign, ours):
    with pytest.raises(InputError) as e: apply_settings(get_recipe("ctseg"), [f"{foreign}=1"])
    assert f"did you mean {ours} (" in str(e.value) or f" or {ours} (" in str(e.value)


def test_a_name_like_none_is_told_where_all_are():
    for foreign in ("momentum", "num_workers", "deterministic"):
        with pytest.raises(InputError, match="`ctseg recipes NAME` lists all"): apply_settings(Recipe(), [f"{foreign}=1"])


def test_a_setting_under_another_group_is_told_its_own():
    with pytest.raises(InputError, match=r"did you mean schedule\.lr\?"): apply_settings(Recipe(), ["method.lr=1"])


def test_what_is_called_an_option_is_one_of_fit():
    options = inspect.signature(cli_training.fit).parameters
    assert set(OPTIONS) <= set(options)


def test_a_frozen_recipe_is_not_changed_by_its_copy():
    recipe = get_recipe("masked")
    copy = recipe.change(lr=1.0, name="other")
    assert (recipe.schedule.lr, copy.schedule.lr, copy.name, recipe.name) == (2e-3, 1.0, "other", "masked")
    with pytest.raises(AttributeError): recipe.schedule.lr = 1.0
