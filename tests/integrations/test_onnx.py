"Runs as ONNX files, asked by ONNX Runtime alone."
import errno
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers.command import ctseg

from ctseg.core.errors import InputError
from ctseg.core.json_files import write_json
from ctseg.prediction.predictor import load_predictor

pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
from ctseg.core.anatomy import ClassMap
from ctseg.core.device import pick_device
from ctseg.data.toys import toy_set
from ctseg.inference.engine import onnx_session
from ctseg.inference.graph import export_graph
from ctseg.inference.loop import Member
from ctseg.inference.rule import Rule
from ctseg.integrations.onnx import OUTPUTS, PredictorGraph, apart_on_noise, export_onnx, write_checked
from ctseg.losses.registry import create_loss
from ctseg.models.missformer import BridgeLayer
from ctseg.models.zoo import create_model
from ctseg.prediction.predictor import Predictor
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


def test_least_areas_are_shares_of_an_image_of_any_size(runs, tmp_path):
    root, slices = runs
    run = shutil.copytree(root/"plain", tmp_path/"run")
    metrics = json.loads((run/"metrics.json").read_text())
    plain = load_predictor(run, "cpu")
    threshold = float(plain.probabilities(slices.images).amax(1).median())
    drawn = replace(plain, rule=Rule(threshold)).predict(slices.images)
    covered = [(drawn == c).mean((1, 2)) for c in range(1, len(slices.classes) + 1)]
    shares = [float(np.median(share)) for share in covered]
    metrics["rule"] = {"threshold": threshold, "gate": 0, "island": 0, "rescue": 0, "least": shares}
    write_json(metrics, run/"metrics.json")
    (run/"checksums.json").unlink()
    export_onnx(run, tmp_path/"run.onnx")
    predictor = load_predictor(run, "cpu")
    for images in (slices.images, slices.images[:, :40, :33]):
        labels = predictor.predict(images)
        assert (ask(tmp_path/"run.onnx", images)[1] == labels).mean() > .999
    assert (predictor.predict(slices.images) != drawn).any()


def test_islands_are_told(runs, tmp_path):
    root, slices = runs
    run = shutil.copytree(root/"plain", tmp_path/"run")
    metrics = json.loads((run/"metrics.json").read_text())
    if not metrics.get("rule"): pytest.skip("no rule was chosen")
    metrics["rule"]["island"] = 5
    write_json(metrics, run/"metrics.json")
    (run/"checksums.json").unlink()
    assert "5 pixels" in export_onnx(run, tmp_path/"run.onnx")["left out"]


def test_command_and_wrong_requests(runs, tmp_path):
    root, _ = runs
    with pytest.raises(InputError, match="ends in .onnx"): export_onnx(root/"plain", tmp_path/"run.pt")
    assert ctseg("export", "onnx", root/"plain", tmp_path/"cli.onnx")[0] == 0
    assert (tmp_path/"cli.onnx").stat().st_size > 1000
    assert ctseg("export", "onnx", tmp_path, tmp_path/"no.onnx")[0] == 2 and not (tmp_path/"no.onnx").exists()


def graph_of(network, loss="marginal", classes=("a", "b", "c")):
    plan, table = pick_device("cpu", "fp32"), ClassMap.from_names(list(classes))
    return PredictorGraph(Predictor([Member(network.eval(), create_loss(loss))], table, plan)).eval()


def test_uctransnet_takes_any_size_and_number_of_images(tmp_path):
    torch.manual_seed(0)
    graph = graph_of(create_model("uctransnet", 1, 4, width=8, image_size=32, layers=1))
    export_graph(graph, tmp_path/"a.onnx", (64, 64), OUTPUTS)
    apart, other_labels = apart_on_noise(graph, onnx_session(tmp_path/"a.onnx"), (40, 70), 1)
    assert apart < 1e-4 and other_labels < 1e-3


class Bridged(torch.nn.Module):
    "MISSFormer's bridge between four sizes of the image; the whole network is tried in the benchmark."
    def __init__(self):
        super().__init__()
        self.bridge = BridgeLayer(8)

    def forward(self, x):
        sizes = [F.avg_pool2d(x, 2**k).repeat(1, 8*times, 1, 1) for k, times in enumerate((1, 2, 5, 8))]
        return tuple(self.bridge([m.permute(0, 2, 3, 1) for m in sizes]))


def test_missformers_bridge_takes_any_size_and_number_of_images(tmp_path):
    torch.manual_seed(0)
    bridge, names = Bridged().eval(), "abcd"
    export_graph(bridge, tmp_path/"a.onnx", (16, 16), dict.fromkeys(names, "BHWC"))
    x = torch.rand(3, 1, 24, 40)
    with torch.inference_mode(): expected = bridge(x)
    for found, truth in zip(onnx_session(tmp_path/"a.onnx")(x.numpy()), expected):
        assert np.abs(found - truth.numpy()).max() < 1e-4


class Resampled(torch.nn.Module):
    "Resamples by cubic interpolation with antialiasing, as a vision transformer does its positions."
    def __init__(self, times):
        super().__init__()
        self.times = times

    def forward(self, x):
        size = [int(s*self.times) if isinstance(s, int) else (s*self.times).long() for s in x.shape[-2:]]
        return F.interpolate(x, size, mode="bicubic", antialias=True),


@pytest.mark.parametrize("times", [.5, 1.5])
def test_cubic_interpolation_with_antialiasing(times, tmp_path):
    export_graph(Resampled(times), tmp_path/"a.onnx", (20, 30), {"out": "BCHW"})
    x = torch.rand(2, 1, 26, 44)
    found, = onnx_session(tmp_path/"a.onnx")(x.numpy())
    assert np.abs(found - Resampled(times)(x)[0].numpy()).max() < 1e-5


class Exponential(torch.nn.Module):
    "An operation that ONNX has no word for."
    def forward(self, x): return torch.cat([torch.linalg.matrix_exp(x)]*4, 1)


class Unsteady(torch.nn.Module):
    "Answers something else each time."
    def forward(self, x): return torch.cat([x]*4, 1)*torch.rand(1, 4, 1, 1)*9


def test_a_full_disk_is_no_fault_of_the_network(tmp_path, monkeypatch):
    def full(*_): raise OSError(errno.ENOSPC, "as if")
    monkeypatch.setattr("ctseg.integrations.onnx.export_graph", full)
    with pytest.raises(OSError, match="as if"):
        write_checked(graph_of(Unsteady()), tmp_path/"a.onnx", (32, 32))


@pytest.mark.parametrize("network", [Exponential(), Unsteady()])
def test_a_network_that_cannot_be_exported_is_told_in_one_line(network, tmp_path, capfd):
    with pytest.raises(InputError, match="cannot be exported") as told:
        write_checked(graph_of(network), tmp_path/"a.onnx", (32, 32))
    assert "\n" not in str(told.value) and len(str(told.value)) < 400
    assert capfd.readouterr() == ("", "")
