"What a finished run has written is told from what an accident or an editor made of it."
import json
import shutil

import numpy as np
import pytest
from helpers.command import ctseg
from helpers.toys import small, toy
from safetensors.torch import load_file, save_file

from ctseg.core.errors import InputError
from ctseg.core.json_files import read_json
from ctseg.models.base import read_weights
from ctseg.models.sealed import seal
from ctseg.prediction.prepare import calibrate_run
from ctseg.prediction.predictor import load_predictor
from ctseg.prediction.saved import read_metrics, run_spec
from ctseg.recipes.fit import fit
from ctseg.report.page import report
from ctseg.runs.folder import Run, read_spec
from ctseg.runs.sums import SUMMED, check_sum, read_sums

TOLD = "not what the run wrote"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "A finished run of teacher and student."
    folder = tmp_path_factory.mktemp("sums")/"run"
    recipe = small("original-teacher-student", "epochs=1", "model=tiny-for-tests", "keep=0.5")
    fit(toy(), recipe, folder, device="cpu", progress=False)
    return folder


@pytest.fixture
def run(whole, tmp_path):
    return Run(shutil.copytree(whole, tmp_path/"run"))


def read_everything(run):
    load_predictor(run.folder, "cpu")
    report(run.folder, toy())


def changed_json(path, *place):
    document = read_json(path)
    inner = document
    for key in place[:-1]: inner = inner[key]
    inner[place[-1]] = inner[place[-1]] + 1 if isinstance(inner[place[-1]], int) else inner[place[-1]]*.9
    path.write_text(json.dumps(document))


def changed_table(path):
    header, row, *rest = path.read_text().splitlines()
    cells = row.split(",")
    numbers = [i for i, cell in enumerate(cells) if cell.replace(".", "", 1).isdigit()]
    cells[numbers[-1]] = "0.125" if "." in cells[numbers[-1]] else str(1 - int(cells[numbers[-1]]) % 2)
    path.write_text("\n".join([header, ",".join(cells), *rest]) + "\n")


def changed_arrays(path):
    arrays = dict(np.load(path))
    np.savez_compressed(path, **arrays | {"labels": (arrays["labels"] == 0).astype(np.uint8)})


def other_weights(path):
    weights = {name: w + .05 if w.is_floating_point() else w for name, w in load_file(path).items()}
    path.write_bytes(b"".join(seal(weights)))


CHANGES = {
    "recipe.json": lambda path: changed_json(path, "seed"),
    "metrics.json": lambda path: changed_json(path, "epochs"),
    "history.csv": changed_table,
    "pseudo_labels.csv": changed_table,
    "pseudo_labels.npz": changed_arrays,
    "checkpoints/model.safetensors": other_weights,
}


def test_every_file_that_decides_is_summed(whole):
    kept = read_sums(whole)
    assert kept.keys() == {name for name in SUMMED if (whole/name).exists()} and CHANGES.keys() <= kept.keys()
    for name in kept: check_sum(whole/name, whole)


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_file_is_told_and_can_be_accepted(run, name):
    CHANGES[name](run/name)
    with pytest.raises(InputError, match=TOLD) as error: read_everything(run)
    assert str(run/name) in str(error.value) and str(run/"checksums.json") in str(error.value)
    (run/"checksums.json").unlink()
    read_everything(run)


def test_weights_without_a_checksum_are_not_the_run_s(run):
    save_file(read_weights(run.weights), run.weights)
    with pytest.raises(InputError, match=TOLD): load_predictor(run.folder, "cpu")


def test_layout_and_line_ends_do_not_count(run):
    for path in run.folder.glob("*.csv"): path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    for name in ("recipe.json", "metrics.json"): (run/name).write_text(json.dumps(read_json(run/name)))
    read_everything(run)


def test_lost_metrics_are_told_and_written_again(run, whole):
    (run/"metrics.json").unlink()
    with pytest.raises(InputError, match="missing, though the run has been finished"): run_spec(run)
    recipe = read_spec(run/"recipe.json")["recipe"]
    fit(toy(), recipe, run.folder, device="cpu", progress=False, resume=True)
    for name in ("checksums.json", "metrics.json"): assert (run/name).read_bytes() == (whole/name).read_bytes()


def test_a_changed_recipe_is_no_recipe_for_another_run(run, tmp_path):
    changed_json(run/"recipe.json", "recipe", "schedule", "lr")
    classes_of = ("import", "nifti", tmp_path, tmp_path/"new", "--classes", run.folder)
    for command in [("recipes", run/"recipe.json"), classes_of]:
        code, _, err = ctseg(*command)
        assert code == 2 and TOLD in err and len(err.strip().splitlines()) == 1


def test_calibrating_again_renews_the_sum(run):
    slices = toy()
    calibrate_run(run, slices[slices.labelled], tune_rule=False)
    assert read_metrics(run, 3).calibration
    load_predictor(run.folder, "cpu", calibrated=True)


@pytest.mark.parametrize("content", ["[]", '{"recipe.json": 1}', "{"])
def test_damaged_sums_are_told(run, content):
    (run/"checksums.json").write_text(content)
    with pytest.raises(InputError, match="checksums.json"): load_predictor(run.folder, "cpu")


def continued(run):
    "The run, continued with its own settings."
    recipe = read_spec(run/"recipe.json")["recipe"]
    return fit(toy(), recipe, run.folder, device="cpu", progress=False, resume=True)


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-8])


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize("name, change", [
    *((name, change) for name, change in CHANGES.items() if name != "recipe.json"),
    *(("checkpoints/model.safetensors", change) for change in (cut_off, flipped)),
    ("metrics.json", cut_off),
])
def test_a_finished_run_that_is_not_whole_is_not_called_finished(run, name, change):
    assert continued(run).finished
    change(run/name)
    with pytest.raises(InputError) as told: continued(run)
    assert str(run/name) in str(told.value)
