"What a notebook gives to the public functions by mistake is told in one line, and nothing is written."
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import ctseg
from ctseg.core.arguments import agrees
from ctseg.core.errors import InputError

IMAGES = np.zeros((3, 8, 8), np.uint8)
MASKS = IMAGES.copy()
MASKS[:, 2:5, 2:5] = 1
NOT_PATHS = (None, 3, b"folder", IMAGES, pd.DataFrame({"a": [1]}), "", "a\0b")


def slices(**given):
    "Three annotated slices of two classes, with other fields."
    return ctseg.SliceSet(**{"images": IMAGES, "masks": MASKS, "known": "all", "classes": ["a", "b"]} | given)


def one_line(call):
    "The line with which a call is refused."
    with pytest.raises(InputError) as e: call()
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.mark.parametrize("wrong", NOT_PATHS, ids=[type(wrong).__name__ + str(i) for i, wrong in enumerate(NOT_PATHS)])
def test_what_is_no_path(wrong, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = {
        "read_challenge: folder": lambda: ctseg.read_challenge(wrong),
        "write_challenge: folder": lambda: ctseg.write_challenge(slices(), wrong),
        "write_submission: path": lambda: ctseg.write_submission(MASKS, ["a", "b", "c"], wrong),
        "evaluate_files: truth": lambda: ctseg.evaluate(wrong, "b.csv"),
        "evaluate_volumes: prediction": lambda: ctseg.evaluate_volumes("a", wrong),
        "fit: out": lambda: ctseg.fit(slices(), "marginal", wrong),
        "fit: data": lambda: ctseg.fit(wrong, "marginal", "new"),
        "segment: out": lambda: ctseg.segment("run", "scan", wrong),
        "segment: scans": lambda: ctseg.segment("run", wrong, "new"),
        "load_predictor: runs": lambda: ctseg.load(wrong),
        "push_to_hub: run": lambda: ctseg.push_to_hub(wrong, "a/b"),
        "Run: folder": lambda: ctseg.Run(wrong),
    }
    for what, call in calls.items():
        assert one_line(call).startswith(f"{what} is ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given, told", [
    ({"recipe": None}, "fit: recipe is None; expected a Recipe or a text"), ({"seed": "1"}, "fit: seed is str '1'; expected a whole number"),
    ({"device": torch.device("cpu")}, "fit: device is device"), ({"resume": "yes"}, "expected True or False"),
    ({"time_limit": 3600}, "fit: time_limit is int 3600; expected a text"), ({"memory": 4}, "fit: memory is int 4"),
    ({"callbacks": print}, "fit: callbacks is builtin_function_or_method"), ({"callbacks": [3]}, "each a function"), ({"log": None}, "fit: log is None"),
    ({"plugins": "mine.py"}, "fit: plugins is str 'mine.py'; expected several, each a path"), ({"init": 3}, "fit: init is int 3"),
    ({"seeds": 3}, "unknown option of fit 'seeds'"),
    ({"lr": 0.1}, "fit: lr is a setting of the recipe; give recipe=get_recipe('marginal').change(lr=0.1)"),
])
def test_arguments_of_fit(given, told, tmp_path):
    empty = slices()[[]]
    assert told in one_line(lambda: ctseg.fit(empty, **{"recipe": "marginal", "out": tmp_path/"new"} | given))
    assert not (tmp_path/"new").exists()


@pytest.mark.parametrize("given, told", [
    ({"images": None}, "SliceSet.images is None; expected uint8 ['N', 'H', 'W']"), ({"images": iter(list(IMAGES))}, "is list_iterator"),
    ({"images": IMAGES[..., None]}, "has 4 dimensions; expected 3: [N,H,W]; take out the axis"), ({"images": IMAGES[0]}, "one image is images[None]"),
    ({"images": IMAGES/255}, "is float64 [3, 8, 8]; expected uint8 [3, 8, 8]: grey values"), ({"images": torch.zeros(3, 8, 8)}, "is Tensor torch.float32"),
    ({"images": np.ma.masked_array(IMAGES)}, "is MaskedArray"), ({"images": IMAGES[:, :0]}, "at least one pixel"),
    ({"masks": ["a.png"]*3}, "the number of a class in each pixel"), ({"masks": MASKS.astype(int) - 1}, "is int64"),
    ({"known": pd.DataFrame(np.ones((3, 2)))}, "give np.asarray(known, bool), 'all' or 'present'"), ({"groups": [1, 2, 3]}, "np.asarray(groups, np.int64)"),
    ({"names": "abc"}, "expected several, each a text"), ({"names": [1, 2, 3]}, "expected several, each a text"), ({"names": 3}, "SliceSet.names is int 3"),
    ({"names": [Path("a"), Path("b"), Path("c")]}, "each a text"), ({"classes": {"a", "b"}}, "no order"), ({"classes": "ab"}, "classes is str 'ab'"),
    ({"classes": {"a": 2, "b": 1}}, "not 1, 2, … in order"), ({"classes": {1: "a", 2: "b"}}, "each a text"), ({"classes": ["a", None]}, "each a text"),
    ({"stacks": "x"}, "SliceSet.stacks is str 'x'"),
])
def test_fields_of_slices(given, told):
    assert told in one_line(lambda: slices(**given))


def test_slices_are_asked_for_where_others_are_given():
    assert "concat: other is None; expected a SliceSet" in one_line(lambda: slices().concat(None))
    assert "write_challenge: slices is list" in one_line(lambda: ctseg.write_challenge([slices()], "new"))


@pytest.mark.parametrize("keywords, told", [
    ({"w_dice": "1"}, "w_dice = '1': expected a number"), ({"w_ce": float("nan")}, "a finite number"), ({"w_ce": -1}, "at least 0"),
    ({"log_dice": "no"}, "expected true or false"), ({"reduction": None}, "reduction"),
])
def test_keywords_of_losses_are_checked_as_settings_are(keywords, told):
    assert told in one_line(lambda: ctseg.create_loss("marginal", **keywords))


def test_losses_take_tensors():
    logits, mask, known = torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4), torch.ones(2, 2)
    for name, of_classes in (("marginal", logits), ("masked", logits[:, 1:])):
        loss = ctseg.create_loss(name)
        loss(of_classes, mask, known)
        assert "logits is list" in one_line(lambda: loss([of_classes], mask, known))
        assert "mask is ndarray float32 [2, 4, 4]; expected a tensor" in one_line(lambda: loss(of_classes, mask.numpy(), known))
        # otherwise everything would count as examined
        assert "known is None; expected a tensor" in one_line(lambda: loss(of_classes, mask, None))


@pytest.mark.parametrize("name", [None, 3, ["marginal"], torch.nn.ReLU])
def test_names_are_texts(name):
    for create in (ctseg.create_loss, ctseg.create_model, ctseg.get_recipe):
        assert "name is " in one_line(lambda: create(name))


def test_numbers_of_numpy_are_numbers():
    recipe = ctseg.get_recipe("marginal").change(epochs=np.int64(3), lr=np.float32(0.5), fold=np.array(2), tune_rule=np.bool_(False))
    assert [recipe.value(key) for key in ("epochs", "lr", "fold", "tune_rule")] == [3, 0.5, 2, False]
    assert ctseg.create_model("attunet", np.int64(1), np.int64(3), width=np.int32(8)) is not None


def test_a_group_of_settings_is_given_as_settings():
    assert "schedule is dict" in one_line(lambda: ctseg.get_recipe("marginal").change(schedule={"lr": 0.1}))
    assert "expected its name, or its settings" in one_line(lambda: ctseg.get_recipe("marginal").change(loss=torch.nn.ReLU()))


def test_annotations_are_read_as_their_reader_does():
    assert agrees((1, 2), list[int]) and agrees([], list[int]) and agrees(np.arange(3), list[int])
    assert not agrees(IMAGES, list[int]) and not agrees("ab", list[str]) and not agrees(True, float)
    assert agrees(print, ctseg.Method | None) is False and agrees(None, ctseg.Method | None)
