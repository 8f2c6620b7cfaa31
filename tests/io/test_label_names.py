"What other programs say of the numbers of labels: right names, or one line."

import json

import pytest
from helpers.volumes import TWO, one_line

from ctseg.core.errors import InputError
from ctseg.io.label_names import dataset_classes, ignore_label, read_examined_cases, table_classes
from ctseg.metrics.label_folders import patients_of_cases


@pytest.mark.parametrize(
    "text",
    [
        "id,name\n1,kidney_left\n2,kidney_right\n",
        "sep=;\nID;Name\n\n2;kidney_right\n1;kidney_left\n;\n",
        "ID;Name\n2;kidney_right\n1;kidney_left\n",
        "label\tstructure\n0\tbackground\n1\tkidney_left\n2\tkidney_right\n",
        "\ufeffindex,name,colour\n1,kidney_left,red\n2,kidney_right,\n",
        "value,class\r\n1.0,kidney_left\r\n2.0,kidney_right\r\n",
    ],
)
def test_tables_of_labels_are_read_in_many_forms(tmp_path, text):
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8", newline="")
    assert table_classes(tmp_path / "labels.csv") == TWO


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", bytes(range(256)), "id,name\n1,Gr\u00f6\u00dfe\n".encode("latin-1"), "id,name\n1,a\n".encode("utf-16"),
     b"id,name\nx,a\n", b"id,name\n,a\n", b"id,name\n1,a\n1,b\n", b"id,name\n1.5,a\n", b"a,b\n1,2\n", b"id,name\n1\n",
     b"id,name\n1,\n", b"id,name\n1,kidney_left,right\n", b"id,name\n1,a\n\n2\n"],
)
def test_tables_that_are_none(tmp_path, content):
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(InputError) as e:
        table_classes(tmp_path / "labels.csv")
    assert "labels.csv" in one_line(e)


@pytest.mark.parametrize("labels", [{"a": 1, "b": 1}, {"1": "a", " 1": "b"}, {"a": 1, "b": 3}, {"a": None}, {"a": True}, ["a"], None])
def test_dataset_json_of_no_classes(tmp_path, labels):
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    with pytest.raises(InputError) as e:
        dataset_classes(tmp_path / "dataset.json")
    assert "dataset.json" in one_line(e)


@pytest.mark.parametrize("labels, "
                         "number", [({"a": 1, "ignore": 2}, 2), ({"1": "a", "2": "ignore"}, 2), ({"a": 1}, None), ("x", None)])
def test_the_label_to_ignore(tmp_path, labels, number):
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert ignore_label(tmp_path / "dataset.json") == number


@pytest.mark.parametrize("names", [[9], [0], [None], [[1]], [True], ["kidney"], "kidney_left"])
def test_what_was_examined_must_be_classes(tmp_path, names):
    (tmp_path / "annotated_labels.json").write_text(json.dumps({"p1": names}))
    with pytest.raises(InputError) as e:
        read_examined_cases(tmp_path / "annotated_labels.json", TWO)
    one_line(e)


def test_patients_that_are_a_list(tmp_path):
    (tmp_path / "patients.json").write_text("[1]")
    with pytest.raises(InputError) as e:
        patients_of_cases(tmp_path, ["p1"])
    assert "patients.json" in one_line(e)
