"Runs with everything a page can show, and the pages' data."
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from ctseg.core.anatomy import ClassMap
from ctseg.data.challenge import read_challenge, write_challenge
from ctseg.prediction.choose import held_out_by
from ctseg.prediction.prepare import calibrate_run
from ctseg.report.page import report
from ctseg.runs.folder import Run

from helpers.fake_runs import fake_run
from helpers.pages import SEES, note_pseudo
from helpers.predictors import CPU
from helpers.toys import toy

RUNS = {"a": {}, "b": dict(seed=1), "c": dict(fold=1), "none": dict(fold=-1), "full": {}}


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """data: the challenge folder; secret: without the truth of its test. a, b: runs of two seeds. c: of
    another fold.
    none: held nothing out. other: of other classes. full: with history, times, pseudo-labels and
    calibration."""
    base = tmp_path_factory.mktemp("world")
    write_challenge(toy(40, labelled=32), base/"data")
    write_challenge(toy(10, labelled=10, seed=5, every=True), base/"data", "test")
    shutil.copytree(base/"data", base/"secret")
    (base/"secret"/"y_test.csv").unlink()
    train = read_challenge(base/"data")
    for name, settings in RUNS.items(): fake_run(base/name, train, rule=SEES, **settings)
    fake_run(base/"other", replace(train, classes=ClassMap.from_names(["x", "y", "z"])), rule=SEES)
    full = Run(base/"full")
    rows = [
        {"phase": phase, "epoch": e, "loss": 1/e, "dice": e/9}
        for phase in ("teacher", "student")
        for e in (1, 2, 3)
    ]
    history = pd.DataFrame(rows)
    history.to_csv(full/"history.csv", index=False)
    history[["phase", "epoch"]].assign(seconds=30).to_csv(full/"timings.csv", index=False)
    note_pseudo(full, train[~train.labelled], np.arange(8) % 2 == 0)
    calibrate_run(full, train[held_out_by(full, train)], CPU)
    report(full.folder, base/"data", plan=CPU)
    return base
