"No command replaces what it reads, or writes a folder into it, whichever option names it."
import os
import shutil

import numpy as np
import pytest
from helpers.command import ctseg
from PIL import Image

from ctseg.cli.options import refuse_replacing
from ctseg.core.errors import InputError


@pytest.fixture
def place(tmp_path, monkeypatch):
    "A run, a data set, scans and tables, of which only the names matter: nothing is read before the refusal."
    for name in (
        "run/recipe.json", "run/metrics.json", "run/checkpoints/model.safetensors", "run/report.html",
        "data/class_names.json", "data/annotated_labels.json", "data/y_train.csv.gz", "scans/a.nii.gz", "scans/IM0001",
        "names.json", "sub.csv", "truth.csv", "slices.zarr/zarr.json",
    ):
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/name).write_text("mine")
    for name in ("train-images", "test-images"):
        (tmp_path/"data"/name).mkdir()
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path/"data"/name/"0.png")
    os.link(tmp_path/"sub.csv", tmp_path/"hard.csv")
    (tmp_path/"soft.csv").symlink_to("sub.csv")
    (tmp_path/"recipe.csv").symlink_to("run/recipe.json")
    (tmp_path/"names.csv").symlink_to("data/class_names.json")
    (tmp_path/"scan.csv").symlink_to(tmp_path/"scans"/"a.nii.gz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


PREDICT = ("predict", "run", "--images", "data/test-images", "--out")

@pytest.mark.parametrize("command, lost", [
    (("evaluate", "truth.csv", "sub.csv", "--json", "sub.csv"), "sub.csv"),
    (("evaluate", "truth.csv", "sub.csv", "--json", "./data/../truth.csv"), "truth.csv"),
    (("evaluate", "truth.csv", "sub.csv", "--json", "soft.csv"), "soft.csv"),
    (("evaluate", "truth.csv", "sub.csv", "--json", "hard.csv"), "hard.csv"),
    (("evaluate", "truth.csv", "sub.csv", "--classes", "names.json", "--json", "names.json"), "names.json"),
    ((*PREDICT, "data/y_train.csv.gz"), "data/y_train.csv.gz"),
    ((*PREDICT, "o.csv", "--probabilities", "run/recipe.json"), "run/recipe.json"),
    ((*PREDICT, "o.csv", "--confidence", "run/metrics.json"), "run/metrics.json"),
    ((*PREDICT, "recipe.csv"), "run/recipe.json"),
    (("export", "rle", "data", "names.csv", "--masks", "sub.csv"), "data/class_names.json"),
    (("import", "nifti", "scans", "new", "--key", "scan.csv"), "scans/a.nii.gz"),
    (("report", "run", "--out", "run/checkpoints/model.safetensors"), "run/checkpoints/model.safetensors"),
    (("report", "run", "--data", "data", "--out", "data/class_names.json"), "data/class_names.json"),
    (("export", "rle", "data", "sub.csv", "--masks", "sub.csv"), "sub.csv"),
    (("export", "rle", "data", "data/class_names.json", "--masks", "sub.csv"), "data/class_names.json"),
    (("import", "nifti", "scans", "new", "--key", "scans/a.nii.gz"), "scans/a.nii.gz"),
    (("import", "dicom", "scans", "new", "--key", "scans/IM0001"), "scans/IM0001"),
    (("import", "nifti", "scans", "new", "--classes", "names.json", "--key", "names.json"), "names.json"),
    (("suggest", "run", "data", "--out", "data/annotated_labels.json"), "data/annotated_labels.json"),
    ((*PREDICT, "o.csv", "--confidence", "names.csv"), "data/class_names.json"),
    (("suggest", "run", "data", "--out", "names.csv"), "data/class_names.json"),
])
def test_inputs_are_never_replaced(place, command, lost):
    before = (place/lost).read_bytes()
    code, _, err = ctseg(*command)
    assert code == 2 and "choose another name" in err and len(err.strip().splitlines()) == 1, err
    assert (place/lost).read_bytes() == before and not (place/"new").exists()


def test_results_of_before_may_be_replaced(place):
    (place/"run"/"submission.csv").touch()
    refuse_replacing(["run/report.html", "run/submission.csv", "scores.json", None], ["run", "data/test-images", None])
    with pytest.raises(InputError): refuse_replacing(["run/recipe.json"], ["run"])
    shutil.rmtree(place/"run")
    refuse_replacing(["run/recipe.json"], ["run", "hf://ada/liver", "x"*300])


@pytest.mark.parametrize("command", [
    ("store", "data", "--out", "data/train-images/new"),
    ("merge", "data", "scans", "--out", "scans/new"),
    ("import", "png", "data/train-images", "scans", "scans/new"),
    ("import", "png", "data/train-images", "run", "scans/new", "--test", "scans"),
    ("export", "dicom-seg", "data", "scans/new", "--masks", "sub.csv", "--source", "scans"),
    ("export", "nnunet", "data", "data/test-images/new"),
    ("segment", "run", "scans", "--out", "scans/new"),
    ("segment", "run", "scans", "--out", "data/../scans/new"),
    ("segment", "run", "linked", "--out", "scans/new"),
    ("fit", "data", "--out", "data/train-images/new"),
    ("fit", "slices.zarr", "--out", "slices.zarr/new"),
    ("demo", "--data", "data", "--out", "data/test-images/new"),
])
def test_no_folder_is_written_into_one_that_is_read(place, command):
    (place/"linked").symlink_to("scans")
    before = sorted(place.rglob("*"))
    code, _, err = ctseg(*command)
    assert code == 2 and "which is read; choose a place outside of it" in err, err
    assert len(err.strip().splitlines()) == 1 and sorted(place.rglob("*")) == before


def test_a_link_that_leads_to_itself_is_told_before_the_work(place):
    (place/"loop").symlink_to("loop")
    for command in (("import", "nifti", "scans", "loop"), ("store", "data", "--out", "loop"), ("segment", "run", "scans", "--out", "loop")):
        code, _, err = ctseg(*command)
        assert code == 2 and len(err.strip().splitlines()) == 1 and "loop" in err, err
