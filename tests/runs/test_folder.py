"A run folder goes on with the recipe it was started with."
import pytest
from helpers.toys import small, toy

from ctseg.core.files import InputError
from ctseg.recipes.fit import fit


def test_a_reworded_recipe_may_go_on(tmp_path):
    recipe, slices = small("masked"), toy()
    fit(slices, recipe, tmp_path/"a", device="cpu", progress=False)
    fit(
        slices,
        recipe.change(about="in other words"),
        tmp_path/"a",
        device="cpu",
        progress=False,
        resume=True,
    )
    with pytest.raises(InputError, match="started with lr"):
        fit(slices, recipe.change(lr=1.), tmp_path/"a", device="cpu", progress=False, resume=True)
