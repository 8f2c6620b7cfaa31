"A submission scored against a truth file, whole or partial."
import numpy as np
import pytest

from ctseg.core.anatomy import ClassMap
from ctseg.core.errors import InputError
from ctseg.core.json_files import write_json
from ctseg.data.mask_csv import write_masks
from ctseg.metrics import evaluate as module
from ctseg.metrics.evaluate import evaluate, evaluate_files


def test_files_score_as_their_arrays_do(tmp_path):
    rng = np.random.default_rng(0)
    truth, pred = rng.integers(0, 4, (2, 5, 8, 8), dtype=np.uint8)
    names, classes = [f"{i}.png" for i in range(5)], ClassMap.from_names(["a", "b", "c"])
    write_masks(truth, names, tmp_path/"y_test.csv")
    write_masks(pred, names, tmp_path/"sub.csv")
    classes.to_json(tmp_path/"class_names.json")
    facts = evaluate_files(tmp_path/"y_test.csv", tmp_path/"sub.csv")["facts"]
    assert facts == evaluate(truth, pred, classes) and facts["groups"] == 5
    write_json({"test": ["p", "p", "q", "q", "q"]}, tmp_path/"patients.json")
    assert evaluate_files(tmp_path/"y_test.csv", tmp_path/"sub.csv")["facts"]["groups"] == 2
    write_json([[1], [1, 2], [], [2, 3], [1, 2, 3]], tmp_path/"annotated.json")
    r = evaluate_files(tmp_path/"y_test.csv", tmp_path/"sub.csv", tmp_path/"annotated.json")
    assert r["facts"]["cells_examined"] == 8 and list(r["table"].support) == [3, 3, 2]
    write_json([[1]], tmp_path/"annotated.json")
    with pytest.raises(InputError, match="1 images .* 5 columns"):
        evaluate_files(tmp_path/"y_test.csv", tmp_path/"sub.csv", tmp_path/"annotated.json")
    write_masks(np.full((5, 8, 8), 4, np.uint8), names, tmp_path/"sub.csv")
    with pytest.raises(InputError, match="value 4"): evaluate_files(tmp_path/"y_test.csv", tmp_path/"sub.csv")


def test_pixels_are_counted_once(tmp_path, monkeypatch):
    count, calls = module.overlaps, []
    monkeypatch.setattr(module, "overlaps", lambda *a: calls.append(1) or count(*a))
    write_masks(np.ones((2, 4, 4), np.uint8), ["0.png", "1.png"], tmp_path/"y_test.csv")
    result = evaluate_files(tmp_path/"y_test.csv", tmp_path/"y_test.csv")
    assert len(calls) == 1 and list(result) == ["table", "facts"]


def test_partial_truth_is_known_by_the_file_beside_it(tmp_path):
    """The training truth has a column for each annotated image, `annotated_labels.json` an entry for each
    image."""
    truth = np.zeros((3, 4, 4), np.uint8)
    truth[0, 0], truth[1, 1], truth[2, 2] = 1, 2, 1
    names = [f"{i}.png" for i in range(3)]
    ClassMap.from_names(["a", "b"]).to_json(tmp_path/"class_names.json")
    write_masks(truth, names, tmp_path/"y_train.csv")
    pred = truth.copy()
    pred[0, 3] = 2  # nobody looked for it there
    write_masks(pred, names, tmp_path/"sub.csv")
    write_json({"train": [0, 0, 1, 1, 1]}, tmp_path/"patients.json")
    write_json([[1], [1, 2], [1], [], []], tmp_path/"annotated_labels.json")
    facts = evaluate_files(tmp_path/"y_train.csv", tmp_path/"sub.csv")["facts"]
    assert (
        facts["dice"] == 1
        and facts["invented"] == 0
        and facts["cells_examined"] == 4
        and facts["groups"] == 2
    )
    for wrong, message in (
        ([[1, 2], [1], [1], [], []], "class 2"),
        ([[1], [1, 2]], "3 columns"),
        ([[1], [1, 2], [1], [], [2]], "3 columns"),
    ):
        write_json(wrong, tmp_path/"annotated_labels.json")
        with pytest.raises(InputError, match=message):
            evaluate_files(tmp_path/"y_train.csv", tmp_path/"sub.csv")


def test_partial_truth_whose_list_is_missing_is_not_taken_for_whole(tmp_path):
    truth = np.zeros((2, 4, 4), np.uint8)
    truth[0, 0], truth[1, 1] = 1, 2
    names = ["0.png", "1.png"]
    ClassMap.from_names(["a", "b"]).to_json(tmp_path/"class_names.json")
    for name in ("y_train.csv.gz", "y_train_full.csv"): write_masks(truth, names, tmp_path/name)
    score = lambda name, **kw: evaluate_files(tmp_path/name, tmp_path/name, **kw)["facts"]
    with pytest.raises(InputError, match="annotated_labels.json: no such file.*--annotated all"):
        score("y_train.csv.gz")
    assert score("y_train.csv.gz", annotated="all") == score(
        "y_train_full.csv"
    ) and "cells_examined" not in score("y_train_full.csv")
    assert score("y_train.csv.gz", annotated="present")["cells_examined"] == 2
    write_json([[1], [1, 2]], tmp_path/"list.json")
    assert score("y_train.csv.gz", annotated=tmp_path/"list.json")["cells_examined"] == 3
    write_json({"train": ["p", None]}, tmp_path/"patients.json")
    with pytest.raises(InputError, match="entry 1: None is no patient"):
        score("y_train.csv.gz", annotated="all")
