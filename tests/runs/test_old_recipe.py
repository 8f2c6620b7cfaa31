"Flat recipes of ctseg 0.1 keep every setting that their method, loss and network read."
import json
from pathlib import Path

import pytest

from ctseg.core.errors import InputError
from ctseg.runs.old_recipe import NOT_EVERYWHERE, is_old, nested, new_place
from ctseg.runs.recipe import CHOICES, Recipe, chosen, recipe_dict, recipe_from

RUNS = Path(__file__).resolve().parents[1]/"fixtures"/"runs"
FLAT = json.loads((RUNS/"ctseg"/"recipe.json").read_text())["recipe"]
READ_BY = {  # as ctseg 0.1 had it
    "teacher-student": "confidence keep consistency",
    "pretrain-finetune": "confidence keep finetune_epochs finetune_lr",
    "mean-teacher": "consistency ramp perturb",
    "unimatch": "consistency ramp warm second second_lr tau views feature_dropout rebalance cutmix",
    "self-training": "teachers rounds quota gate absent pixel cutmix finetune_epochs finetune_lr",
}


@pytest.mark.parametrize("method", READ_BY)
def test_what_a_method_read_it_still_reads(method):
    recipe = Recipe(method=chosen("method", method))
    places = {old: new_place(recipe, old) for old in READ_BY[method].split()}
    assert all(place and place[0] == "method" for place in places.values()), places
    assert len(set(places.values())) == len(places)


def test_what_every_run_had_has_a_place():
    recipe = Recipe(model=chosen("model", "unet:resnet34"), loss=chosen("loss", "marginal"))
    for old in FLAT.keys() - {"name", "about", *CHOICES} - NOT_EVERYWHERE: assert new_place(recipe, old), old
    for old in ("w_dice", "w_pixel", "reduction", "pixel_known", "log_dice"):
        assert new_place(recipe, old)[0] == "loss"
    for old in ("pretrained", "frozen", "norm"): assert new_place(recipe, old)[0] == "model"


@pytest.mark.parametrize("run", ["ctseg", "seed-teacher-student", "self-training"])
def test_values_are_carried_over(run):
    flat = json.loads((RUNS/run/"recipe.json").read_text())["recipe"]
    recipe = recipe_from(nested(flat))
    assert is_old(flat) and not is_old(recipe_dict(recipe))
    for key in (
        "width",
        "epochs",
        "batch_size",
        "lr",
        "ema",
        "image_size",
        "folds",
        "precision",
        "tune_rule",
        "mirror",
        "presence",
    ):
        assert recipe.value(key) == flat[key], key
    assert [recipe.value(group) for group in CHOICES] == [flat[group] for group in CHOICES]


def test_a_flat_recipe_with_other_values_says_so():
    changed = recipe_from(nested(FLAT | {"warm": False, "tau": 0.7, "second": 0.25, "finetune_lr": 1.0}))
    assert (changed.method.supervised_first, changed.method.tau, changed.method.second_phase) == (
        False,
        0.7,
        0.25,
    )
    with pytest.raises(InputError, match="'colour' is unknown"): nested(FLAT | {"colour": "red"})
