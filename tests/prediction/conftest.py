"A challenge folder with runs of it, for the tests of prediction."
from dataclasses import replace

import numpy as np
import pytest
from skimage.io import imsave

from ctseg.core.anatomy import ClassMap
from ctseg.data.challenge import read_challenge, write_challenge

from helpers.fake_runs import fake_run
from helpers.predictors import write_pngs
from helpers.toys import toy


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """data: the challenge folder. a, b: runs of two folds. none: a run that held nothing out. other: a run
    of other
    classes. mixed: images of two sizes."""
    base = tmp_path_factory.mktemp("world")
    write_challenge(toy(32, labelled=24), base/"data")
    write_challenge(toy(10, labelled=10, seed=5, every=True), base/"data", "test")
    train = read_challenge(base/"data")
    fake_run(base/"a", train)
    fake_run(base/"b", train, fold=1)
    fake_run(base/"none", train, fold=-1)
    fake_run(base/"other", replace(train, classes=ClassMap.from_names(["x", "y", "z"])))
    folder = write_pngs(base/"mixed", train.images[:3])
    imsave(folder/"3.png", np.zeros((8, 8), np.uint8), check_contrast=False)
    return base
