"""A stranger's way through README: its Python and its commands, word for word, where a challenge folder is
called `my_data`."""
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.runs import command
from helpers.toys import tiny

from ctseg.data.challenge import check_submission
from ctseg.data.images import read_images
from ctseg.recipes.table import DEFAULT_RECIPE, RECIPES

README = (Path(__file__).resolve().parents[2]/"README.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `([^`]+)` \| `ctseg ([^`]+)` \|$", README, re.M)


@pytest.fixture
def desk(phantom, tmp_path, monkeypatch):
    "A folder to work in, with `my_data`; the default recipe is tiny here."
    shutil.copytree(phantom, tmp_path/"my_data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(RECIPES, DEFAULT_RECIPE, tiny(DEFAULT_RECIPE, "image_size=32"))
    return tmp_path


def test_there_is_something_to_run():
    assert [line.split()[0] for _, line in ROWS] == ["fit", "predict"]


def test_python_runs_as_written(desk):
    names = {"images": read_images("my_data/test-images")[1]}
    exec("import ctseg\n" + "\n".join(line for line, _ in ROWS), names)
    assert names["masks"].shape == names["images"].shape and names["masks"].dtype == np.uint8
    assert names["run"].folder == Path("runs/a") and (desk/"runs/a/metrics.json").exists()


def test_commands_run_as_written(desk):
    for _, line in ROWS:
        command(*shlex.split(line.replace("DIR", "my_data/test-images")))
    assert check_submission("masks.csv", "my_data")["images"] == 8
