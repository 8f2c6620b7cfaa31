"Which slices a run learns from, which it keeps apart, and what becomes of classes that nobody looked for."
import warnings
from dataclasses import replace

import numpy as np
import pytest
from helpers.phases import make_job
from helpers.toys import small, toy

from ctseg.core.device import pick_device
from ctseg.inference.loop import predict_labels
from ctseg.prediction.choose import held_out_by
from ctseg.recipes.fit import check_job, fit
from ctseg.runs.folder import Run
from ctseg.runs.job import Job
from ctseg.runs.phases import Phases
from ctseg.training.method import Phase

CPU = pick_device("cpu")


def test_unlabelled_images_can_be_rationed(tmp_path):
    def job(*settings):
        return Job(small("mean-teacher", *settings), toy(), Run(tmp_path), CPU, seed=3)
    assert [len(job(f"unlabelled={n}").unlabelled) for n in (-1, 0, 5, 99)] == [12, 0, 5, 12]
    few, more = job("unlabelled=4").unlabelled.names, job("unlabelled=8").unlabelled.names
    assert set(few) < set(more) and len(job("unlabelled=4").labelled) == len(job().labelled)


def test_nothing_of_a_held_out_patient_is_learnt_from(tmp_path):
    """Neither its truth nor its pictures: unlabelled slices of held-out groups stay out, the others stay,
    and as many are chosen as were asked for."""
    # each patient has two annotated slices and two others
    slices = replace(toy(24, labelled=12), groups=np.r_[np.arange(12)//2, np.arange(12)//2])

    def job(*settings):
        return make_job(tmp_path/"-".join(settings), "unimatch", "folds=3", *settings, slices=slices)
    for fold in range(3):
        j = job(f"fold={fold}")
        assert len(j.holdout) == 4 and not set(j.holdout.groups) & (
            set(j.labelled.groups) | set(j.unlabelled.groups)
        )
        assert len(j.labelled) == len(j.unlabelled) == 8
        with pytest.warns(UserWarning, match="4 unlabelled images are of held-out patients"): check_job(j)
        assert len(job(f"fold={fold}", "unlabelled=5").unlabelled) == 5
    assert len(job("fold=-1").unlabelled) == 12


def unexamined(slices, c):
    "The same, nobody having looked for class c + 1."
    known = slices.known.copy()
    known[:, c] = False
    return replace(slices, known=known, masks=np.where(slices.masks == c + 1, 0, slices.masks))


@pytest.mark.parametrize("c", [0, 2])
def test_what_nobody_looked_for_is_never_drawn(tmp_path, c):
    """A softmax that hears nothing of a class, not even that it is absent, may put it anywhere: as good as
    background wherever another class is unknown."""
    slices = unexamined(toy(n=16, labelled=16, size=24, every=True), c)
    recipe = small("marginal-log", "epochs=15", "fold=-1", "augment=none", "lr=0.01", "ema=0.8")
    job = Job(recipe, slices, Run(tmp_path), CPU, progress=False)
    model = Phases(job).train(Phase("supervised", job.labelled))
    assert not (predict_labels(model, slices, job.loss, "cpu") == c + 1).any()


def test_closing_what_nobody_looked_for_says_so_and_leaves_the_rest(tmp_path):
    slices = unexamined(toy(), 1)
    with pytest.warns(UserWarning, match="nobody looked for lung_left on any slice"):
        check_job(job := Job(small("masked"), slices, Run(tmp_path), progress=False))
    kept = np.isin(slices.names, job.labelled.names)
    assert (
        job.labelled.known[:, 1].all()
        and not job.holdout.known[:, 1].any()
        and not job.unlabelled.known.any()
    )
    np.testing.assert_array_equal(job.labelled.known[:, [0, 2]], slices.known[kept][:, [0, 2]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_job(Job(small("masked"), toy(), Run(tmp_path), progress=False))
        # said where a training begins, not wherever somebody asks what a run has held out
        Job(small("masked"), slices, Run(tmp_path), progress=False)


def test_slices_of_the_same_name_are_not_mistaken_for_one_another(tmp_path):
    a, b = toy(12, 12), toy(12, 12, seed=1)
    both = a.concat(replace(b, groups=b.groups + 100))
    recipe = small("masked", "epochs=1")
    run = fit(both, recipe, tmp_path/"a", device="cpu", progress=False)
    out, job = held_out_by(run, both), Job(recipe, both, run, progress=False)
    assert out.sum() == len(job.holdout) and np.array_equal(both[out].images, job.holdout.images)
