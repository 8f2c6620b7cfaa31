"Neighbouring slices from the import to the prediction: the same voxels whichever way, and nothing unknown in silence."
import warnings
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.command import ctseg
from helpers.fake_runs import fake_run
from helpers.folders import told
from helpers.toys import Tiny, make, tiny
from helpers.volumes import TWO
from safetensors.numpy import load_file

from ctseg.core.json_files import read_json, write_json
from ctseg.data.slices import with_context
from ctseg.data.sources import read_slices
from ctseg.inference.loop import Member
from ctseg.io.cases import Case
from ctseg.io.folders import write_volumes
from ctseg.io.index import predicted_volumes
from ctseg.io.neighbours import with_neighbours
from ctseg.io.slicing import Slicing
from ctseg.io.volumes import Volume
from ctseg.losses.registry import create_loss
from ctseg.models.settings import make_model, model_settings
from ctseg.prediction.predictor import Predictor, load_predictor
from ctseg.prediction.prepare import prepare
from ctseg.prediction.submission import predict_folder
from ctseg.prediction.volumes import label_volume
from ctseg.recipes.fit import fit
from ctseg.report.comparison import common_slices, compare
from ctseg.report.page import report
from ctseg.report.suggestions import suggest_files
from ctseg.runs.folder import Run
from ctseg.segmentation import segment
from ctseg.training.deadline import Stopped

SLICING = Slicing(window=(0., 2000.), size=16)
UNEVEN = np.array([0, 3, 6, 12, 15, 18.])


def blob(seed, uneven=False) -> Volume:
    "Two bright balls in noise, off the middle, so that each slice is cropped at a place of its own."
    rng = np.random.default_rng(seed)
    x, y, z = np.indices((22, 20, 6))
    hu = rng.normal(-900, 20, x.shape)
    labels = np.zeros(x.shape, np.uint8)
    for id, at in enumerate(rng.integers(6, 14, (2, 2)), 1):
        ball = (x - at[0] - z)**2 + (y - at[1])**2 + 4*(z - 3)**2 < 26
        hu[ball], labels[ball] = 200*id, id
    positions = np.stack([0*UNEVEN, 0*UNEVEN, UNEVEN], 1) if uneven else None
    return Volume(hu.astype(np.float32), np.diag([2., 2, 3, 1]), labels, np.ones(2, bool), positions)


def recipe_of(*settings, name="marginal"):
    return tiny(name, "context=1", "epochs=1", "folds=3", "precision=fp32", *settings)


def trained(data, out, *settings, name="marginal", **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fit(data, recipe_of(*settings, name=name), out, device="cpu", progress=False, **more)


def weights(run) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in load_file(run.weights).items()}


VOLUMES = [blob(n, uneven=n == 5) for n in range(6)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "data: six imported volumes; two are the test, one of them with a gap, and two are unlabelled. run: a run on it."
    base = tmp_path_factory.mktemp("context")
    volumes = [replace(v, labels=None, known=None) if n in (2, 3) else v for n, v in enumerate(VOLUMES)]
    cases = [Case(f"{n}", lambda v=v: v, n, split="test" if n > 3 else "train") for n, v in enumerate(volumes)]
    write_volumes(cases, base/"data", TWO, SLICING)
    trained(base/"data", base/"run", "epochs=2")
    return base


def test_images_are_cropped_at_places_of_their_own(world):
    lines = read_json(world/"data"/"index.json")["images"]["test"].values()
    assert len({tuple(line["corner"]) for line in lines}) > 4


def test_predicting_the_folder_and_segmenting_the_scans_give_the_same_voxels(world, tmp_path):
    predictor = prepare(world/"run", "cpu", threshold=.3)
    assert predictor.context == 1
    predict_folder(predictor, world/"data"/"test-images", tmp_path/"s.csv", batch_size=4)
    predicted = list(predicted_volumes(tmp_path/"s.csv", world/"data", "test"))
    assert any(one.labels.any() for one in predicted)
    for one, volume in zip(predicted, VOLUMES[4:]):
        for batch_size in (1, 4, 16):
            found = label_volume(predictor, volume, SLICING, batch_size)
            assert np.array_equal(found.labels, one.labels)


def looked_at(world, volume) -> list:
    "What a network with one neighbour on each side is shown of a scan, [n, 3, H, W]."
    shown = []
    class Spy(Tiny):
        def forward(self, x, *args, **kw):
            shown.append((255*x).round().byte().numpy())
            return super().forward(x, *args, **kw)
    member = Member(Spy(3, 3).eval(), create_loss("marginal"), context=1)
    label_volume(Predictor([member], TWO, prepare(world/"run", "cpu").plan), volume, SLICING, 4)
    return np.concatenate(shown)


def test_a_scan_is_shown_as_its_import_was(world):
    slices = with_neighbours(read_slices(world/"data", "test"), world/"data", "test", 1)
    shown = np.concatenate([looked_at(world, volume) for volume in VOLUMES[4:]])
    assert np.array_equal(shown, slices.stacks[:])
    ends = ~slices.stacks[:].any((2, 3))
    assert np.flatnonzero(ends[:, 0]).tolist() == [0, 6, 9] and np.flatnonzero(ends[:, 2]).tolist() == [5, 8, 11]


def test_a_store_is_the_folder(world, tmp_path):
    pytest.importorskip("zarr")
    assert ctseg("store", world/"data", "--out", tmp_path/"d.zarr")[0] == 0
    streamed = trained(tmp_path/"d.zarr", tmp_path/"streamed", "epochs=2", memory="1KB")
    assert weights(streamed) == weights(Run(world/"run"))
    predictor = prepare(world/"run", "cpu", threshold=.3)
    for images, out in ((tmp_path/"d.zarr", "store.csv"), (world/"data"/"test-images", "folder.csv")):
        predict_folder(predictor, images, tmp_path/out, confidence=tmp_path/f"{out}.sure")
    for end in ("", ".sure"):
        assert (tmp_path/f"store.csv{end}").read_text() == (tmp_path/f"folder.csv{end}").read_text()


@pytest.mark.parametrize("name", ["teacher-student", "mean-teacher", "unimatch", "self-training"])
def test_every_method_learns_from_neighbours(world, tmp_path, name):
    settings = ["folds=2", "fold=-1"] if name == "self-training" else ["fold=-1"]
    run = trained(world/"data", tmp_path/"run", *settings, name=name)
    state = load_file(run.weights)
    first = state["fine.0.weight"]
    assert first.shape[1] == 3 and np.isfinite(first).all()
    assert set(run.read_history().phase) - {"supervised"}


def test_without_context_nothing_changes(world, tmp_path):
    slices = read_slices(world/"data")
    seen = with_neighbours(slices, world/"data", "train", 2)
    plain, carried = (trained(data, tmp_path/name, "context=0") for data, name in ((slices, "a"), (seen, "b")))
    assert weights(plain) == weights(carried)


def test_a_run_that_was_cut_goes_on_as_it_would_have(world, tmp_path):
    def stop(epoch, row, folder): return "that is enough" if epoch == 1 else None
    with pytest.raises(Stopped):
        trained(world/"data", tmp_path/"run", "epochs=2", callbacks=[stop])
    told(lambda: trained(world/"data", tmp_path/"run", "epochs=2", "context=0", resume=True), "context = 1, not 0")
    resumed = trained(world/"data", tmp_path/"run", "epochs=2", resume=True)
    assert weights(resumed) == weights(Run(world/"run"))


def test_arrays_are_a_volume_or_nothing(world):
    model = load_predictor(world/"run", "cpu")
    slices = read_slices(world/"data", "test")[:6]
    told(lambda: model.predict(slices.images), "context = 1", "volume=True")
    told(lambda: model.predict(slices.images[0]), "context = 1")
    whole = model.predict(slices.images, volume=True)
    padded = np.concatenate([0*slices.images[:1], slices.images, 0*slices.images[:1]])
    stacks = np.stack([padded[:-2], padded[1:-1], padded[2:]], 1)
    prob = model.probabilities(stacks)
    assert np.array_equal(whole, model.predict(slices.images, batch_size=2, volume=True))
    assert whole.shape == slices.images.shape and prob.shape == (6, 2, 16, 16)
    told(lambda: model.probabilities(slices.images), "context = 1")


@pytest.mark.parametrize("mm, told_of", [(3, False), (4, False), (1, True), (8, True)])
def test_slices_of_another_thickness_are_told(world, tmp_path, mm, told_of):
    volume = replace(VOLUMES[4], affine=np.diag([2., 2, mm, 1]))
    nib.save(nib.Nifti1Image(volume.hu, volume.affine), tmp_path/"p.nii.gz")
    found = segment(load_predictor(world/"run", "cpu"), tmp_path/"p.nii.gz", tmp_path/"out")
    assert any("what it knows of neighbours" in note for note in found.notes) == told_of
    write_volumes([Case("p", lambda: volume, 0)], tmp_path/"data", TWO, SLICING)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        predict_folder(load_predictor(world/"run", "cpu"), tmp_path/"data"/"train-images", tmp_path/"s.csv")
    assert any("what it knows of neighbours" in str(w.message) for w in seen) == told_of


def test_an_ensemble_may_see_differently(world, tmp_path):
    seen = with_neighbours(read_slices(world/"data"), world/"data", "train", 2)
    fake_run(tmp_path/"alone", seen, folds=2)
    fake_run(tmp_path/"wide", seen, folds=2, context=2)
    runs = [tmp_path/"alone", world/"run", tmp_path/"wide"]
    together, images = load_predictor(runs, "cpu"), seen.stacks[:5]
    alone = [load_predictor(run, "cpu").probabilities(images[:, 2 - n:3 + n]) for n, run in enumerate(runs)]
    assert together.context == 2
    assert torch.allclose(together.probabilities(images), sum(alone)/3, atol=1e-6)
    facts = predict_folder(together, world/"data"/"test-images", tmp_path/"s.csv")
    assert facts["models"] == 3


@pytest.mark.parametrize("engine, package", [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_engines_and_files_see_neighbours_too(world, tmp_path, engine, package):
    pytest.importorskip("onnx")
    pytest.importorskip(package)
    images = with_neighbours(read_slices(world/"data"), world/"data", "train", 1).stacks[:4]
    model = load_predictor(world/"run", "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = model.by_engine(engine).probabilities(images)
    assert torch.allclose(found, model.probabilities(images), atol=1e-4)
    if engine == "openvino": return
    import onnxruntime
    from ctseg.integrations.onnx import export_onnx
    fake_run(tmp_path/"alone", read_slices(world/"data"), folds=2)
    assert export_onnx([world/"run", tmp_path/"alone"], tmp_path/"m.onnx")["slices seen at once"] == 3
    session = onnxruntime.InferenceSession(str(tmp_path/"m.onnx"), providers=["CPUExecutionProvider"])
    prob, _ = session.run(None, {"image": images.astype(np.float32)/255})
    both = load_predictor([world/"run", tmp_path/"alone"], "cpu")
    assert np.abs(prob - both.probabilities(images).numpy()).max() < 1e-4


def test_pages_lists_and_rules_know_the_neighbours(world, tmp_path):
    page = report(world/"run", world/"data", out=tmp_path/"r.html", plan="cpu").read_text()
    assert "context" in page
    facts = suggest_files([world/"run"], world/"data", tmp_path/"s.csv", count=3, device="cpu")
    assert facts["slices"] == 3
    tuned = prepare([world/"run"], "cpu", tune=world/"data").tuned_dice
    assert tuned["Dice out of fold, argmax"] >= 0
    runs = [Run(world/"run"), fake_run(tmp_path/"alone", read_slices(world/"data"), folds=2)]
    slices = common_slices(runs, world/"data", "test")
    assert slices.context == 1 and len(compare(runs, slices, "cpu")) == 2
    told(lambda: compare(runs, with_context(slices, 0), "cpu"), "context = 1")


@pytest.mark.parametrize("name", ["attunet", "nnunet", "uctransnet", "unet:resnet18"])
def test_networks_take_more_channels(name):
    if ":" in name: make(name, 3)  # skips where the libraries are missing
    settings = replace(model_settings(name)(name=name), width=4)
    if ":" in name: settings = replace(settings, pretrained=False)
    model = make_model(settings, 3, 2, 64, in_chans=5).eval()
    assert model(torch.rand(1, 5, 64, 64)).shape == (1, 3, 64, 64)


def test_what_does_not_fit_is_told(world, tmp_path):
    plain = fake_run(tmp_path/"plain", read_slices(world/"data"), folds=2, model="tiny-for-tests", loss="marginal")
    told(lambda: trained(world/"data", tmp_path/"a", init=plain.folder), "--init", "context=0")
    told(lambda: trained(world/"data", tmp_path/"b", "context=0", init=world/"run"), "context=1")
    told(lambda: trained(world/"data", tmp_path/"c", "context=0", teacher=world/"run"), "--teacher", "context=1")
    trained(world/"data", tmp_path/"taught", teacher=plain.folder)
    slices = read_slices(world/"data")
    told(lambda: trained(slices, tmp_path/"d"), "context = 1", "imported")
    told(lambda: trained(with_neighbours(slices, world/"data", "train", 1), tmp_path/"e", "context=2"), "context = 2")
    (tmp_path/"test-images").symlink_to(world/"data"/"test-images")
    told(lambda: predict_folder(prepare(world/"run", "cpu"), tmp_path/"test-images", tmp_path/"s.csv"), "context needs volumes")
    told(lambda: recipe_of("context=-1"), "context")
    for name in "abcde": assert not (tmp_path/name).exists()


def test_old_runs_see_single_slices(world, tmp_path):
    run = fake_run(tmp_path/"old", read_slices(world/"data"), folds=2)
    spec = read_json(run/"recipe.json")
    del spec["recipe"]["data"]["context"]
    write_json(spec, run/"recipe.json")
    assert load_predictor(run.folder, "cpu").context == 0
