"Self-training: whose truth a teacher has seen, what it may fill in, and what its student hears of it."
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.phases import make_job, make_views, phases
from helpers.toys import small, toy

from ctseg.core.errors import InputError
from ctseg.methods import self_training
from ctseg.methods.self_training import Completed, NoisyStudent, fill_in_unseen
from ctseg.recipes.fit import fit
from ctseg.runs.phases import Phases
from ctseg.training.method import Phase


@pytest.mark.parametrize("cutmix", [0, 1])
def test_students_see_ruined_and_mixed_pictures(tmp_path, cutmix):
    seen = phases(tmp_path, "self-training", "rounds=2", f"cutmix={cutmix}")
    for name, noisy in [("teacher-1-1", False), ("teacher-2-1", True), ("student", True)]:
        t = seen[name]
        slices = t.phase.slices
        view = make_views(t, torch.arange(len(slices)))["labelled"][:len(slices)]
        pairs = ((view.image[:, 0], slices.images/np.float32(255)), (view.mask, slices.masks))
        image, mask = ((a != torch.from_numpy(b)).flatten(1).any(1) for a, b in pairs)
        assert image.all() == image.any() == noisy and mask.any() == (noisy and cutmix == 1), name


def test_where_a_teacher_is_unsure_a_student_still_hears_what_people_examined(tmp_path):
    t = phases(tmp_path, "self-training", "cutmix=0", "pixel_confidence=0.6")["student"]
    n, examined = len(t.phase.slices), torch.from_numpy(toy().known[:12])
    view = make_views(t, torch.arange(n))["labelled"][:n]
    heard = view.known if view.known.ndim == 4 else view.known[:, :, None, None]
    if view.weight is not None: heard = heard & (view.weight > 0)
    assert heard.expand(-1, -1, 32, 32)[examined].all()
    # or no pixel was unsure
    assert not heard.expand(-1, -1, 32, 32)[torch.from_numpy(t.phase.slices.known) & ~examined].all()


def test_teachers_never_saw_the_truth_they_complete(tmp_path, monkeypatch):
    seen, train = {}, Phases.train

    def spy_train(self, phase):
        seen[phase.name] = set(phase.slices.groups.tolist())
        return train(self, phase)
    filled, fill_in = [], self_training.fill_in

    def spy_fill_in(job, teachers, slices, settings):
        filled.append((len(teachers), set(slices.groups.tolist()), slices.labelled.all()))
        return fill_in(job, teachers, slices, settings)
    monkeypatch.setattr(Phases, "train", spy_train)
    monkeypatch.setattr(self_training, "fill_in", spy_fill_in)
    fit(toy(), small("self-training", "rounds=2"), tmp_path/"run", device="cpu", progress=False)
    out_of_fold = [g for n, g, labelled in filled if labelled and n == 1]
    assert len(out_of_fold) == 2
    for k, groups in enumerate(out_of_fold, 1):
        for n in (1, 2): assert not seen[f"teacher-{n}-{k}"] & groups


def test_a_teacher_sure_of_nothing_adds_nothing(tmp_path):
    recipe = small("self-training", "quota=0.5", "cell_confidence=1", "absent_peak=0")
    cells = pd.read_csv(fit(toy(), recipe, tmp_path/"run", device="cpu", progress=False)/"pseudo_cells.csv")
    assert cells["present added"].sum() == 0 and cells["absent added"].sum() == 0


def test_a_teacher_cannot_call_absent_what_it_was_never_told_about(tmp_path, monkeypatch):
    job = make_job(tmp_path, "self-training", "fold=-1")
    slices, fold = job.labelled, np.arange(len(job.labelled)) % 2
    known = slices.known.copy()
    known[fold == 1, 0] = False  # so teacher 0, which learns from fold 1, knows nothing of class 1
    masks = np.where((slices.masks == 1) & (fold == 1)[:, None, None], 0, slices.masks)
    monkeypatch.setattr(
        self_training,
        "fill_in",
        lambda job, teachers, s, settings: Completed(
            replace(s, known=np.ones_like(s.known)), np.ones(s.masks.shape, bool)
        ),
    )
    some = replace(slices, known=known, masks=masks)
    completed = fill_in_unseen(job, [None, None], some, fold, job.recipe.method).slices
    np.testing.assert_array_equal(completed.known[fold == 0][:, 0], known[fold == 0][:, 0])
    assert completed.known[fold == 1].all() and completed.known[:, 1:].all()


def test_a_mirrored_slice_keeps_what_people_looked_for_on_its_own_side(tmp_path):
    job = make_job(tmp_path, "self-training", "fold=-1", "augment=none", "mirror=horizontal")
    examined = np.zeros((len(job.labelled), 3), bool)
    examined[:, 1] = True
    completed = replace(job.labelled, known=np.ones_like(examined))
    sure = np.ones(completed.masks.shape, np.uint8)
    sure[:, :, :10] = 0  # at the left border only people are to be heard
    t = job.trainer(
        job.networks.make(), Phase("student", completed, NoisyStudent(0, examined), pixel_weights=sure)
    )
    known = make_views(t, torch.arange(len(completed)))["labelled"].known
    plain = torch.ones(3, 32, 32, dtype=torch.bool)
    plain[[0, 2], :, :10] = False
    mirrored = plain.flip(-1)[[1, 0, 2]]
    n = sum(torch.equal(k, mirrored) for k in known)
    assert 0 < n < len(completed) and n + sum(torch.equal(k, plain) for k in known) == len(completed)


def test_more_teachers_than_patients_are_refused_before_the_training(tmp_path):
    with pytest.raises(InputError):
        fit(toy(), small("self-training", "teachers=99"), tmp_path/"run", device="cpu", progress=False)
    assert not (tmp_path/"run").exists()
