"Trackers and callbacks see each epoch once, also of a run that was cut, and change nothing."
import json
import random

import numpy as np
import pytest
import torch
from helpers.phases import weights
from helpers.runs import contents, together
from helpers.toys import tiny, toy
from helpers.trackers import Memory, enter_memory, fit_tracked

from ctseg.core.errors import InputError
from ctseg.recipes.fit import fit
from ctseg.training import loop
from ctseg.training.deadline import Stopped


def run(out, **more):
    return fit(toy(), tiny("mean-teacher", "epochs=3"), out, device="cpu", progress=False, **more)


@pytest.fixture
def memory(monkeypatch):
    "The tracker `memory`, as if its package were installed; what it has seen."
    enter_memory(monkeypatch)
    monkeypatch.setattr(Memory, "seen", [])
    return Memory.seen


@pytest.fixture(scope="module")
def plain(tmp_path_factory): return run(tmp_path_factory.mktemp("plain")/"run")


def test_trackers_see_the_recipe_and_each_epoch_once(tmp_path, memory, plain):
    def stop(epoch, row, folder): return "enough" if epoch == 2 else None
    with pytest.raises(Stopped, match="enough"): run(tmp_path/"run", log="memory", callbacks=[stop])
    assert memory[-1] == "finish"
    resumed = run(tmp_path/"run", log=["memory"], resume=True)
    points = [entry for entry in memory if isinstance(entry, tuple)]
    history = plain.read_history()
    assert [step for step, _ in points] == [1, 2, 3]
    assert [values["mean-teacher/loss"] for _, values in points] == history.loss.tolist()
    configs = [entry for entry in memory if isinstance(entry, dict)]
    assert len(configs) == 1 and configs[0]["schedule.epochs"] == 3 and configs[0]["recipe"] == "mean-teacher"
    assert {k: v for k, v in contents(resumed.folder).items() if k != "trackers.json"} == contents(
        plain.folder
    )


def test_tensorboard_goes_on_without_duplicates(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    def dies(epoch, row, folder):
        if epoch == 2: raise KeyError("killed")
    with pytest.raises(KeyError): run(tmp_path/"run", log="tensorboard", callbacks=[dies])
    done = run(tmp_path/"run", log="tensorboard", resume=True)
    seen = events.EventAccumulator(str(done/"tensorboard"))
    seen.Reload()
    assert [s.step for s in seen.Scalars("mean-teacher/loss")] == [1, 2, 3]


def test_a_tracker_that_fails_later_does_not_end_the_training(tmp_path, memory, monkeypatch, plain):
    def fails(self, values, step=None): raise ConnectionError("no network")
    monkeypatch.setattr(Memory, "log", fails)
    with pytest.warns(UserWarning, match="--log memory has failed") as told:
        done = run(tmp_path/"run", log="memory")
    assert len(told) == 1 and torch.equal(weights(done), weights(plain))


def test_of_several_processes_one_logs_and_all_go_on(tmp_path):
    together(2, fit_tracked, toy(), tiny("masked", "epochs=2"), tmp_path/"run")
    assert (tmp_path/"run"/"metrics.json").exists()
    assert json.loads((tmp_path/"run"/"trackers.json").read_text())["memory"]["logged"] == 2


@pytest.mark.parametrize("name, "
                         "text", [("tensorbord", "did you mean tensorboard"), ("aim", "pip install aim"), ("tensorboard,clearml,x", "clearml|tensorboard")])
def test_what_cannot_log_is_told_before_training(tmp_path, name, text):
    with pytest.raises(InputError, match=text): run(tmp_path/"run", log=name)
    assert not (tmp_path/"run").exists()


def test_a_tracker_that_cannot_start_is_told_in_one_line(tmp_path, memory, monkeypatch):
    def fails(self): raise RuntimeError("not logged in\nand much more")
    monkeypatch.setattr(Memory, "start", fails)
    with pytest.raises(InputError, match="not logged in") as e: run(tmp_path/"run", log="memory")
    assert "\n" not in str(e.value)


def test_callbacks_see_each_epoch_and_change_nothing(tmp_path, plain):
    seen = []
    def disturbs(epoch, row, folder):
        seen.append((epoch, row["epoch"], (folder/"history.csv").read_text().count("\n") - 1))
        row.clear()
        random.seed(1), np.random.seed(1), torch.manual_seed(1), torch.rand(5), np.random.rand(5)
    disturbed = run(tmp_path/"run", callbacks=[disturbs, lambda *facts: 7])
    assert seen == [(1, 1, 1), (2, 2, 2), (3, 3, 3)] and contents(disturbed.folder) == contents(plain.folder)


@pytest.mark.parametrize("way", ["return", "raise"])
def test_a_callback_stops_and_the_run_goes_on(tmp_path, way, plain):
    epochs = []
    def stops(epoch, row, folder):
        epochs.append(epoch)
        if epoch == 2 and way == "raise": raise Stopped("far enough")
        if epoch == 2: return "far enough"
    with pytest.raises(Stopped, match="far enough: stopped after 2 epochs"):
        run(tmp_path/"run", callbacks=[stops])
    assert not (tmp_path/"run"/"metrics.json").exists()
    done = run(tmp_path/"run", callbacks=[stops], resume=True)
    assert epochs == [1, 2, 3] and contents(done.folder) == contents(plain.folder)


def test_an_exception_of_a_callback_surfaces(tmp_path):
    def fails(epoch, row, folder): return row["no such column"]
    with pytest.raises(KeyError, match="no such column"): run(tmp_path/"run", callbacks=[fails])


@pytest.mark.filterwarnings("error")
def test_a_plain_notebook_gets_a_bar_of_text(monkeypatch):
    monkeypatch.setattr(loop, "in_notebook", lambda: True)
    monkeypatch.setattr(loop.importlib.util, "find_spec", lambda name: None)
    assert loop.bar_kind() is loop.tqdm and loop.tqdm.__module__ == "tqdm.std"
