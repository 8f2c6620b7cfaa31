"Runs as ONNX files, asked by ONNX Runtime alone."
import json

import numpy as np
import pytest

from helpers.command import ctseg

from ctseg.core.files import InputError, write_json
from ctseg.prediction.predictor import load_predictor

pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
from ctseg.data.toys import toy_set
from ctseg.integrations.onnx import export_onnx
from ctseg.recipes.fit import fit
from ctseg.recipes.table import get_recipe
from ctseg.runs.recipe import apply_settings


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "Two runs of a few steps on toys, one of which enlarges its images, and the slices."
    root = tmp_path_factory.mktemp("onnx")
    slices, _ = toy_set(24, labelled=16, size=48)
    for name, settings in ("plain", []), ("enlarged", ["image_size=64"]):
        recipe = apply_settings(get_recipe("marginal-log"), ["width=8", "epochs=2", "folds=4", *settings])
        fit(slices, recipe, root/name, 0, device="cpu", progress=False)
    return root, slices


def ask(file, images):
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(["probabilities", "labels"], {"image": images[:, None].astype(np.float32)/255})


@pytest.mark.parametrize("names", [["plain"], ["enlarged"], ["plain", "enlarged"]])
def test_file_answers_as_the_runs_do(runs, names, tmp_path):
    root, slices = runs
    folders = [root/name for name in names]
    facts = export_onnx(folders, tmp_path/"runs.onnx")
    assert facts["image sizes"] == "any" and facts["largest difference to PyTorch"] < 1e-4
    predictor = load_predictor(folders, "cpu")
    for images in (slices.images, slices.images[:3, :40, :33]):  # another batch, another size
        prob, labels = ask(tmp_path/"runs.onnx", images)
        assert np.abs(prob - predictor.probabilities(images).numpy()).max() < 1e-4
        if not predictor.rule.island:
            assert (labels == predictor.predict(images)).mean() > .999
        assert labels.dtype == np.uint8 and labels.shape == images.shape
    meta = runtime.InferenceSession(str(tmp_path/"runs.onnx")).get_modelmeta().custom_metadata_map
    assert json.loads(meta["classes"]) == {str(i): n for i, n in enumerate(predictor.classes.names, 1)}


def test_islands_are_told(runs, tmp_path):
    root, slices = runs
    import shutil
    run = shutil.copytree(root/"plain", tmp_path/"run")
    metrics = json.loads((run/"metrics.json").read_text())
    if not metrics.get("rule"): pytest.skip("no rule was chosen")
    metrics["rule"]["island"] = 5
    write_json(metrics, run/"metrics.json")
    assert "5 pixels" in export_onnx(run, tmp_path/"run.onnx")["left out"]


def test_command_and_wrong_requests(runs, tmp_path):
    root, _ = runs
    with pytest.raises(InputError, match="ends in .onnx"): export_onnx(root/"plain", tmp_path/"run.pt")
    assert ctseg("export", "onnx", root/"plain", tmp_path/"cli.onnx")[0] == 0
    assert (tmp_path/"cli.onnx").stat().st_size > 1000
    assert ctseg("export", "onnx", tmp_path, tmp_path/"no.onnx")[0] == 2 and not (tmp_path/"no.onnx").exists()
