"""Every method on a toy problem: it trains, resumes exactly, and without unlabelled images is the
supervised method."""
import warnings

import pandas as pd
import pytest
import torch
from helpers.phases import FOUR, phases, weights
from helpers.toys import small, toy

from ctseg.prediction.predictor import load_predictor
from ctseg.recipes.fit import fit
from ctseg.runs.folder import Run
from ctseg.runs.job import Job
from ctseg.runs.phases import Phases
from ctseg.training import loop
from ctseg.training.method import Phase

SEMI = ["original-teacher-student", "original-pretrain-finetune", "mean-teacher", "unimatch", "self-training"]


@pytest.mark.parametrize("name", ["masked", *SEMI])
@pytest.mark.parametrize("loss", ["marginal", "masked"])
def test_a_run_cut_in_any_phase_ends_as_the_whole_one(tmp_path, monkeypatch, name, loss):
    if name.startswith("original") and loss == "masked": pytest.skip("the original has one loss")
    recipe = small(name) if name.startswith("original") else small(name, f"loss={loss}")
    whole = fit(toy(), recipe, tmp_path/"whole", device="cpu", progress=False)
    ends, real = [], loop.end_epoch

    def cut(session):
        real(session)
        ends.append(session.phase.name)
        if len(ends) == at: raise KeyboardInterrupt
    total = len(whole.read_history())
    times = pd.read_csv(whole/"timings.csv")
    assert (
        len(times) == total
        and (times.seconds > 0).all()
        and times["where"].str.fullmatch(r"cpu \(.+\), fp32").all()
    )
    for at in {1, total//2, total - 1}:
        ends.clear()
        monkeypatch.setattr(loop, "end_epoch", cut)
        with pytest.raises(KeyboardInterrupt):
            fit(toy(), recipe, tmp_path/f"cut{at}", device="cpu", progress=False)
        monkeypatch.setattr(loop, "end_epoch", real)
        again = fit(toy(), recipe, tmp_path/f"cut{at}", device="cpu", progress=False, resume=True)
        assert torch.equal(weights(again), weights(whole))
        assert (again/"history.csv").read_text() == (whole/"history.csv").read_text()


@pytest.mark.parametrize("name", SEMI[:-1])
def test_without_unlabelled_images_a_method_is_its_supervised_form(tmp_path, name):
    # nothing is unknown: no term of any method has anything to act on
    slices = toy(n=12, labelled=12, every=True)
    recipe = small(name, "consistency=0") if name == "mean-teacher" else small(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = fit(slices, recipe, tmp_path/"semi", device="cpu", progress=False)
    phase = run.read_history().phase.iloc[0]
    job = Job(recipe, slices, Run(tmp_path/"sup"), seed=0, progress=False)
    Phases(job).train(Phase(phase, job.labelled))  # the same name, so the same random numbers
    assert torch.equal(weights(run), weights(job.run))


@pytest.mark.parametrize("name", SEMI)
def test_a_network_may_work_at_another_size_than_the_images(tmp_path, name):
    slices = toy()
    run = fit(slices, small(name, "image_size=16", "epochs=1"), tmp_path/"run", device="cpu", progress=False)
    predictor = load_predictor(run.folder, "cpu")
    assert predictor.members[0].image_size == 16
    assert predictor.predict(slices.images[:2]).shape == (2, *slices.image_shape)


@pytest.mark.parametrize("ema", [0, .1])
def test_the_average_has_the_decay_of_the_recipe(tmp_path, ema):
    t = phases(tmp_path, "masked", f"ema={ema}")["supervised"]
    before = [w.clone() for w in t.learner.ema.model.parameters()]
    t.step(FOUR)
    for old, avg, new in zip(before, t.learner.ema.model.parameters(), t.learner.raw.parameters()):
        assert torch.allclose(avg, ema*old + (1 - ema)*new, atol=1e-6)
