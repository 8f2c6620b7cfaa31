"Loading runs, averaging them, and images that are refused."
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from ctseg.core.anatomy import ClassMap
from ctseg.core.errors import InputError
from ctseg.inference.rule import Rule
from ctseg.prediction import predictor as module
from ctseg.prediction.predictor import grey_images, load_predictor, predict_masks
from ctseg.prediction.prepare import prepare
from ctseg.training.checkpoints import save_weights

from helpers.command import ctseg
from helpers.fake_runs import fake_run
from helpers.predictors import CPU, bright, fixed, write_pngs
from helpers.toys import toy

GREY = toy(3, labelled=3).images


# ---- images

@pytest.mark.parametrize("images, says", [
    (GREY/255, "round().astype('uint8')"),
    ((GREY/255).astype(np.float32), "round().astype('uint8')"),
    (GREY.astype(np.float64), "window"),
    (GREY.astype(np.uint16), "window"),
    (GREY.astype(np.int64), "window"),
    (GREY.astype(np.int16)*8 - 1024, "of values from -"),
    (GREY > 99, "black and white"),
    (np.stack([GREY]*3, -1), "colour"),
    (np.stack([GREY[0]]*3, -1), "colour"),
    (np.stack([GREY[0]]*4, -1), "colour"),
    (GREY[:, None], "channel axis"),
    (GREY[..., None], "channel axis"),
    (GREY[0, 0], "expected uint8"),
    (GREY[None, None], "expected uint8"),
    (np.zeros((3, 0, 32), np.uint8), "expected uint8"),
    (np.zeros((0, 32, 32)), "expected uint8"),
    (np.array("0.png"), "expected uint8"),
    (None, "expected uint8"),
    ([GREY[0], GREY[1, 1:]], "several sizes"),
    (["0.png", "1.png"], "expected uint8"),
])
def test_images_that_are_no_grey_slices_are_refused(images, says):
    with pytest.raises(InputError) as error: fixed(bright).predict(images)
    assert (
        str(error.value).startswith("images: ") and says in str(error.value) and "\n" not in str(error.value)
    )


def test_what_predict_takes():
    predictor = fixed(bright)
    masks = predictor.predict(GREY)
    assert masks.dtype == np.uint8 and masks.shape == GREY.shape and masks.any()
    assert np.array_equal(masks, predict_masks(predictor, GREY))
    assert np.array_equal(predictor.predict(GREY[1]), masks[1])
    assert np.array_equal(predictor.predict(list(GREY)), masks)
    assert np.array_equal(predictor.predict(torch.from_numpy(GREY)), masks)
    assert np.array_equal(predictor.predict(GREY[:, ::-1, ::2], batch_size=2), masks[:, ::-1, ::2])
    assert predictor.predict(GREY[:0]).shape == (0, 32, 32)
    assert grey_images(GREY) is GREY


def test_another_size_than_in_training_is_warned_of_once(tmp_path):
    predictor = load_predictor(fake_run(tmp_path/"run", toy()).folder, CPU)
    with pytest.warns(UserWarning, match="trained on images of 32x32 pixels, these are 16x20"):
        predictor.predict(GREY[:, :16, :20])
    sized = load_predictor(fake_run(tmp_path/"sized", toy(), image_size=32).folder, CPU)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictor.predict(GREY)
        sized.predict(GREY[:, :16, :20])


def test_a_predictor_says_what_it_is(tmp_path):
    runs = [fake_run(tmp_path/name, toy(), seed).folder for seed, name in enumerate("ab")]
    predictor = replace(load_predictor(runs, "cpu", views=3), rule=Rule(0.4))
    assert repr(predictor) == "Predictor(a, b: 3 classes, 3 views, threshold 0.4, cpu in fp32)"


# ---- views

def test_views_of_a_network_that_does_not_care_change_little():
    y, x = np.mgrid[:48, :40]
    blob = (255*np.exp(-((y - 20)**2 + (x - 22)**2)/90)).astype(np.uint8)[None]
    mirrored = fixed(lambda x: x.repeat(1, 3, 1, 1), mirror="horizontal")
    difference = replace(mirrored, views=18).probabilities(blob) - mirrored.probabilities(blob)
    assert difference.abs().max() < 0.35  # the average of blobs on both sides
    plain = fixed(lambda x: x.repeat(1, 3, 1, 1))
    difference = replace(plain, views=9).probabilities(blob) - plain.probabilities(blob)
    assert difference.abs().max() < 0.06


def test_only_what_every_run_has_learnt_is_mirrored(tmp_path):
    a = fake_run(tmp_path/"a", toy(), mirror="horizontal").folder
    b = fake_run(tmp_path/"b", toy(), seed=1).folder
    assert load_predictor(a, CPU).mirror == "horizontal"
    assert load_predictor([a, b], CPU).mirror is None
    load_predictor(a, CPU, views=18)
    with pytest.raises(InputError, match="expected 1 to 9"): load_predictor([a, b], CPU, views=10)


# ---- ensembles

def test_runs_of_other_classes_cannot_be_averaged(tmp_path):
    a = fake_run(tmp_path/"a", toy()).folder
    swapped = ClassMap.from_names(["disc_right", "disc_left", "bar"])  # the same names in another order
    b = fake_run(tmp_path/"b", replace(toy(), classes=swapped)).folder
    with pytest.raises(InputError, match="b: knows other classes than .*a; runs of different classes"):
        load_predictor([a, b], CPU)


def test_an_ensemble_is_the_mean_of_its_runs(tmp_path):
    folders = [fake_run(tmp_path/name, toy(), seed).folder for seed, name in enumerate("abc")]
    alone = torch.stack([load_predictor(f, CPU).probabilities(GREY) for f in folders])
    assert torch.allclose(load_predictor(folders, CPU).probabilities(GREY), alone.mean(0), atol=1e-6)
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)


def test_softmax_and_sigmoid_together_are_read_like_a_sigmoid(tmp_path):
    soft = fake_run(tmp_path/"soft", toy(), loss="marginal").folder
    assert load_predictor(soft, CPU).activation == "softmax"
    assert load_predictor([soft, fake_run(tmp_path/"a", toy()).folder], CPU).activation == "sigmoid"


# ---- the rule at another size

def test_islands_are_a_share_of_the_area(tmp_path):
    "A rule chosen on 8x8 pixels means four times as many pixels at 16x16."
    image = np.zeros((1, 16, 16), np.uint8)
    image[0, 2:5, 2:5] = 255  # nine pixels
    predictor = replace(fixed(bright), rule=Rule(island=4), rule_size=(8, 8))
    assert predictor.rule_at((16, 16)) == Rule(island=16) and not predict_masks(predictor, image).any()
    for size in ((16, 16), None): assert predict_masks(replace(predictor, rule_size=size), image).any()
    assert load_predictor(fake_run(tmp_path/"run", toy()).folder, CPU).rule_size == (32, 32)


# ---- precision

def test_runs_predict_in_the_precision_they_were_trained_in(tmp_path, monkeypatch):
    kinds = ("auto", "fp32", "fp16", "bf16")
    runs = {p: fake_run(tmp_path/p, toy(), precision=p).folder for p in kinds}

    def used(*which, plan="cpu"): return load_predictor([runs[k] for k in which], plan).plan.precision
    assert [used(k) for k in kinds] == ["fp32", "fp32", "fp32", "bf16"]  # a CPU has no float16
    assert (
        used("bf16", "fp32") == "fp32" and used("bf16", "auto") == "bf16" and used("bf16", plan=CPU) == "fp32"
    )
    assert prepare(runs["bf16"], "cpu").plan.precision == "bf16"
    asked = []

    def pick(*wish):
        asked.append(wish)
        return CPU
    monkeypatch.setattr(module, "pick_device", pick)
    load_predictor(runs["fp32"])
    assert asked == [("auto", "fp32")]


def test_probabilities_that_are_no_numbers_are_no_empty_submission(tmp_path):
    runs = [fake_run(tmp_path/name, toy(), seed) for seed, name in enumerate("ab")]
    model = load_predictor(runs[1].folder, CPU).members[0].model
    next(model.parameters()).data.fill_(torch.nan)
    save_weights(model, runs[1].weights)
    given = [
        "--images",
        write_pngs(tmp_path/"images", GREY[:2]),
        "--out",
        tmp_path/"s.csv",
        "--device",
        "cpu",
    ]
    code, _, err = ctseg("predict", *(r.folder for r in runs), *given)
    assert code == 2 and err.startswith(
        f"ctseg: {runs[1].folder}: the probabilities are not finite (in fp32)"
    )
    assert len(err.splitlines()) == 1 and not (tmp_path/"s.csv").exists()
    code, _, err = ctseg("predict", runs[1].folder, *given, "--precision", "bf16")
    assert code == 2 and "(in bf16)" in err and "--precision fp32" in err
