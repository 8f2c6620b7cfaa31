"Several processes learn what one learns."
import json

import numpy as np
import pytest
from helpers.runs import apart, losses_of, together
from helpers.toys import applicable, small, tiny, toy

from ctseg.data.slices import with_stacks
from ctseg.data.stacks import stacks_of
from ctseg.data.store import write_store
from ctseg.recipes.fit import fit
from ctseg.recipes.table import get_recipe

RECIPES = [
    "masked",
    "original-teacher-student",
    "original-pretrain-finetune",
    "mean-teacher",
    "unimatch",
    "self-training",
]


def test_two_processes_learn_what_one_learns(tmp_path):
    def changed(name, epochs):
        # of two steps each
        wanted = ["rebalance=yes", "tune_rule=no", f"epochs={epochs}", f"finetune_epochs={epochs}"]
        return tiny(name, *applicable(get_recipe(name), wanted))
    recipes = {n: changed(n, 10 if n in ("masked", "mean-teacher", "unimatch") else 5) for n in RECIPES}
    recipes["presence"] = tiny("marginal", "epochs=10", "presence=0.5", "reduction=image", "tune_rule=no")
    recipes["attunet"] = small("masked", "tune_rule=no", "epochs=10")
    recipes["context"] = tiny("unimatch", "context=1", "epochs=6", "tune_rule=no")
    slices = toy()
    pytest.importorskip("zarr")
    write_store(slices, tmp_path/"toy.zarr")
    recipes["store"] = recipes["masked"]  # trained on the store, streamed
    slices = with_stacks(slices, stacks_of(slices.images, np.zeros(24, int), np.arange(24), 1))
    for n in (1, 2):
        (tmp_path/str(n)).mkdir()
        together(n, losses_of, slices, recipes, tmp_path/str(n))
    one, two = (json.loads((tmp_path/n/"losses.json").read_text()) for n in "12")
    assert one.keys() == two.keys() == recipes.keys()
    for losses in (one, two): assert losses["store"] == losses["masked"]  # bit for bit
    for name in one:
        assert one[name].keys() == two[name].keys()
        for phase in one[name]:
            a, b = np.array(one[name][phase]), np.array(two[name][phase])
            assert len(a) == len(b) and np.abs(a - b).max() < 1e-5, (name, phase, np.abs(a - b))
        assert sum(map(len, one[name].values())) >= 20
    for f in ("pseudo_labels.csv", "recipe.json"):
        assert (tmp_path/"1"/"original-teacher-student"/f).read_text() == (
            tmp_path/"2"/"original-teacher-student"/f
        ).read_text()


def test_processes_that_see_different_folders_are_told(tmp_path):
    fit(toy(), tiny("masked", "fold=-1"), tmp_path/"0"/"run", device="cpu", progress=False)
    (tmp_path/"0"/"run"/"metrics.json").unlink()
    together(2, apart, toy(), tiny("masked", "fold=-1"), tmp_path)
    assert [(tmp_path/r/"said").read_text().count("must be on a disk of all of them") for r in "01"] == [1, 1]
