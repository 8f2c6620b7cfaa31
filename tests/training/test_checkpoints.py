"Checkpoints: killed, damaged, hostile, on a full disk."
import os
import random
import shutil
import time

import pytest
import torch
from helpers.processes import start
from helpers.runs import contents, fit_quietly, kill_and_resume
from helpers.toys import small, tiny, toy

from ctseg.core.atomic import PART
from ctseg.core.errors import InputError
from ctseg.recipes.fit import fit
from ctseg.training import loop


@pytest.mark.parametrize("name", ["unimatch", "self-training"])
def test_killed_at_any_moment_a_run_ends_as_the_whole_one(tmp_path, name):
    recipe, slices = tiny(name), toy()
    begin = time.monotonic()
    p = start(fit_quietly, slices, recipe, tmp_path/"whole")
    p.join()
    kill_and_resume(
        slices, recipe, tmp_path/"cut", time.monotonic() - begin, kills=4, rng=random.Random(name)
    )
    assert contents(tmp_path/"cut") == contents(tmp_path/"whole")


def test_a_kill_while_a_file_is_written_leaves_a_run_that_can_be_resumed(tmp_path):
    recipe, slices = small("masked"), toy()
    fit(slices, recipe, tmp_path/"whole", device="cpu", progress=False)
    for left in ("recipe.json", "checkpoints/supervised/step-0000002"):
        run = tmp_path/left.replace("/", "-")
        (run/left).parent.mkdir(parents=True)
        hold = (run/left).parent/f".{(run/left).name}.abc{PART}"
        hold.mkdir()
        (hold/"half").write_text("half")
        if left != "recipe.json":
            (run/"recipe.json").write_bytes((tmp_path/"whole"/"recipe.json").read_bytes())
        fit(slices, recipe, run, device="cpu", progress=False, resume=True)
        assert contents(run) == contents(tmp_path/"whole")


def test_a_kill_at_the_end_of_a_phase_leaves_no_checkpoints_for_ever(tmp_path):
    recipe, slices, run = small("masked", "model=tiny-for-tests"), toy(), tmp_path/"run"
    fit(slices, recipe, run, device="cpu", progress=False)
    whole, phase = contents(run), run/"checkpoints"/"supervised"
    for name in ("step-0000002", "step-0000004"): shutil.copytree(phase/"final", phase/name)
    for name in ("metrics.json", "checksums.json"): (run/name).unlink()
    fit(slices, recipe, run, device="cpu", progress=False, resume=True)
    assert contents(run) == whole


@pytest.mark.parametrize("damage", ["model.safetensors", "ema.safetensors", "state.pt", None])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, damage):
    recipe, slices = small("masked", "epochs=4"), toy()
    whole = fit(slices, recipe, tmp_path/"whole", device="cpu", progress=False)
    run = tmp_path/"cut"

    def cut(session, need):
        if session.progress.step > 4: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as m:
        m.setattr(loop, "stop_in_time", cut)
        fit(slices, recipe, run, device="cpu", progress=False)
    newest = max((run/"checkpoints"/"supervised").glob("step-*"))
    assert newest.name == "step-0000004"
    for f in [newest/damage] if damage else list(newest.iterdir()): f.write_bytes(f.read_bytes()[:100])
    with pytest.warns(UserWarning, match="step-0000004 is damaged"):
        fit(slices, recipe, run, device="cpu", progress=False, resume=True)
    assert contents(run) == contents(whole.folder)


@pytest.mark.parametrize("damage", ["model.safetensors", "ema.safetensors"])
def test_the_only_checkpoint_damaged_is_a_fresh_start(tmp_path, damage):
    recipe, slices = small("masked"), toy()
    whole = fit(slices, recipe, tmp_path/"whole", device="cpu", progress=False)
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as m:
        m.setattr(
            loop,
            "stop_in_time",
            lambda session, need: (_ for _ in ()).throw(KeyboardInterrupt) if session.progress.step > 2 else None,
        )
        fit(slices, recipe, tmp_path/"cut", device="cpu", progress=False)
    only, = (tmp_path/"cut"/"checkpoints"/"supervised").glob("step-*")
    (only/damage).write_bytes((only/damage).read_bytes()[:100])
    with pytest.warns(UserWarning, match="is damaged"):
        run = fit(slices, recipe, tmp_path/"cut", device="cpu", progress=False, resume=True)
    assert contents(run.folder) == contents(whole.folder)


def test_a_checkpoint_runs_no_code(tmp_path):
    from ctseg.training.checkpoints import Checkpoints

    class Evil:
        def __reduce__(self): return os.mkdir, (str(tmp_path/"evil"),)
    (tmp_path/"step-0000001").mkdir()
    torch.save({"epoch": Evil()}, tmp_path/"step-0000001"/"state.pt")
    with pytest.warns(UserWarning, match="damaged"): assert Checkpoints(tmp_path).load({}) is None
    assert not (tmp_path/"evil").exists()


def test_a_full_disk_is_told_by_a_checkpoint_too(tmp_path, monkeypatch):
    import errno
    from pathlib import Path
    def full(self, data): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match="the disk is full"):
        fit(toy(), tiny("masked", "fold=-1"), tmp_path/"run", device="cpu", progress=False)


def test_what_others_may_read_they_may_load(tmp_path):
    run = fit(toy(), tiny("masked", "fold=-1"), tmp_path/"run", device="cpu", progress=False)
    assert run.weights.stat().st_mode == (run/"recipe.json").stat().st_mode
