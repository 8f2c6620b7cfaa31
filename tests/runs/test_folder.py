"A run folder goes on with the recipe it was started with."
import re
import shutil
import sys

import pytest
from helpers.runs import contents
from helpers.toys import small, toy

from ctseg.core.atomic import remove
from ctseg.core.errors import InputError
from ctseg.core.json_files import read_json, write_json
from ctseg.prediction.saved import run_spec
from ctseg.recipes.fit import fit
from ctseg.data.slices import SliceSet
from ctseg.runs.folder import Run
from ctseg.runs.start import check_free, prospect


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
    slices.images[0, 0, 0] ^= 1
    again = SliceSet(slices.images, slices.masks, slices.known, slices.names, slices.groups, slices.classes)
    with pytest.raises(InputError, match="started with other slices"):
        fit(again, recipe, tmp_path/"a", device="cpu", progress=False, resume=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lost")/"run"
    recipe = small("original-teacher-student", "epochs=1", "model=tiny-for-tests", "keep=0.5")
    fit(toy(), recipe, folder, device="cpu", progress=False)
    return recipe, folder


def resumed(finished, out):
    return fit(toy(), finished[0], out, device="cpu", progress=False, resume=True)


def test_a_phase_that_was_lost_is_told_and_trained_again(finished, tmp_path):
    out = shutil.copytree(finished[1], tmp_path/"run")
    for name in ("metrics.json", "checksums.json"): (out/name).unlink()
    shutil.rmtree(out/"checkpoints"/"teacher")
    with pytest.warns(UserWarning, match="phase teacher is trained again: 1 epochs"): resumed(finished, out)
    assert contents(out) == contents(finished[1])


@pytest.mark.parametrize("lost, told", [
    ("checkpoints", "no checkpoint is left in .*: starting from the beginning"),
    ("recipe.json checkpoints history.csv", "no run in .* yet: starting one"),
    ("", "finished run: nothing to train"),
])
def test_what_resume_does_is_told(finished, tmp_path, lost, told):
    run = Run(shutil.copytree(finished[1], tmp_path/"run"))
    if lost: (run/"metrics.json").unlink()
    for name in lost.split(): remove(run/name)
    assert re.search(told, prospect(run))


@pytest.mark.parametrize("teacher, goes_on", [({}, True), ({"teacher": {"weights": "0"*64}}, False)])
def test_a_run_whose_teacher_filled_in_labels_is_not_continued(finished, tmp_path, teacher, goes_on):
    run = Run(shutil.copytree(finished[1], tmp_path/"run"))
    (run/"metrics.json").unlink()
    spec = read_json(run/"recipe.json") | teacher
    spec["recipe"]["data"]["completion"] = 0.9
    write_json(spec, run/"recipe.json")
    if goes_on: return check_free(run, resume=True)
    with pytest.raises(InputError, match="teacher"): check_free(run, resume=True)


def test_what_a_kill_after_the_last_file_leaves_goes(finished, tmp_path):
    out = shutil.copytree(finished[1], tmp_path/"run")
    for name in (".lock", ".owner"): (out/name).touch()
    (out/".metrics.json.abc.part").mkdir()
    resumed(finished, out)
    assert contents(out) == contents(finished[1])


def test_a_run_that_goes_on_says_nothing(finished, tmp_path):
    run = Run(shutil.copytree(finished[1], tmp_path/"run"))
    (run/"metrics.json").unlink()
    assert prospect(run) == ""


def test_a_finished_run_without_weights_says_how_to_get_them(finished, tmp_path):
    run = Run(shutil.copytree(finished[1], tmp_path/"run"))
    run.weights.unlink()
    for use in (lambda: run_spec(run), lambda: resumed(finished, run.folder)):
        with pytest.raises(InputError, match="missing, though the run is finished.*delete .*metrics.json"): use()
    (run/"metrics.json").unlink()
    resumed(finished, run.folder)
    assert contents(run.folder) == contents(finished[1])


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes there")
def test_a_name_that_the_weights_cannot_have_is_told_before_training(tmp_path):
    with pytest.raises(InputError, match="no UTF-8"): resumed((small("masked"), None), tmp_path/"a\udcff")
    assert not list(tmp_path.iterdir())
