"""Teacher and student, and pretrain then fine-tune: how long, how fast, from where, and what the student
pays for."""
from dataclasses import replace

import numpy as np
import pytest
from helpers.phases import loss_of, make_views, phases, starts_from
from helpers.toys import small, tiny, toy

from ctseg.data.toys import toy_set
from ctseg.inference.loop import predict_labels
from ctseg.losses.consistency import consistency_loss
from ctseg.methods.teacher_student import TeacherStudent, TeacherStudentSettings
from ctseg.metrics.challenge import challenge_dice
from ctseg.recipes.fit import fit
from ctseg.runs.folder import Run
from ctseg.runs.job import Job
from ctseg.runs.phases import Phases
from ctseg.training.method import Phase


@pytest.mark.parametrize("keep", [4, 13, 24])
def test_pretraining_takes_as_many_steps_as_a_supervised_phase(tmp_path, keep):
    seen = phases(
        tmp_path, "original-pretrain-finetune", "epochs=12", f"keep={keep}", slices=toy(36, labelled=12)
    )
    assert (
        len(seen["pretrain"].phase.slices) == keep
        and seen["pretrain"].total == seen["teacher"].total == 12*3
    )


@pytest.mark.parametrize("name, "
                         "before", [("original-pretrain-finetune", "pretrain"), ("self-training", "student")])
def test_a_fine_tune_goes_on_gently_with_the_truth_alone(tmp_path, name, before):
    seen = phases(tmp_path, name, "finetune_epochs=5", "finetune_lr=0.0004", "lr=0.01")
    t = seen["finetune"]
    assert (t.epochs, t.learner.peaks[0]) == (5, .0004)
    assert starts_from(t, seen[before]) and not starts_from(seen[before], seen[next(iter(seen))])
    assert (
        t.phase.slices.names == toy()[toy().labelled].names
        and np.array_equal(t.phase.slices.known, toy().known[:12])
        and t.extra is None
    )


@pytest.mark.parametrize("name, "
                         "before", [("original-pretrain-finetune", "pretrain"), ("self-training", "student")])
def test_a_fine_tune_of_no_epochs_is_left_out(tmp_path, name, before):
    assert list(phases(tmp_path, name, "finetune_epochs=0"))[-1] == before


@pytest.mark.parametrize("presence", [0, .5])
def test_a_student_pays_for_its_distance_to_the_teacher(tmp_path, presence):
    "Pixel by pixel; what a presence head says has a loss of its own."
    losses = []
    for weight in (0, 1, 3):
        seen = phases(
            tmp_path/str(weight), "teacher-student", f"consistency={weight}", f"presence={presence}"
        )
        t = seen["student"]
        t.learner.raw.eval()
        views = make_views(t)
        losses.append(loss_of(t, views).item())
    student, teacher = (
        t.loss.probabilities(model(views["kept"].image))
        for model in (t.learner.raw, seen["teacher"].learner.ema.model)
    )
    distance = consistency_loss(student, teacher).item()
    assert distance > 1e-3 and np.subtract(losses[1:], losses[0]) == pytest.approx(
        [distance, 3*distance], rel=1e-3
    )


def test_a_student_with_perfect_pseudo_labels_beats_its_teacher(tmp_path):
    few, whole = toy_set(60, 3, size=24, seed=1)
    truth = replace(few, masks=whole, known=np.ones_like(few.known))
    unlabelled = truth[~few.labelled]
    test = toy(n=40, labelled=40, seed=2, size=24, every=True)
    recipe = tiny(
        "marginal",
        "epochs=80",
        "batch_size=4",
        "fold=-1",
        "augment=none",
        "lr=0.01",
        "ema=0.9",
        "log_dice=yes",
    )
    job = Job(recipe, few, Run(tmp_path/"run"), progress=False)
    both = Phases(job)
    teacher = both.train(Phase("teacher", job.labelled))
    method = TeacherStudent(TeacherStudentSettings(consistency=0))
    student = both.train(Phase("student", job.labelled, method, unlabelled, teacher))

    def dice(model):
        return challenge_dice(predict_labels(model, test, job.loss, "cpu"), test.masks, 3)
    assert dice(student) > dice(teacher) + 0.15


@pytest.mark.parametrize("name", ["original-teacher-student", "original-pretrain-finetune"])
def test_a_filter_that_keeps_nothing_leaves_the_teacher(tmp_path, name):
    with pytest.warns(UserWarning, match="none that is kept"):
        run = fit(toy(), small(name, "keep=0"), tmp_path/"a", device="cpu", progress=False)
    assert set(run.read_history().phase) == {"teacher"} and (run/"metrics.json").exists()


def test_a_student_may_start_from_its_teacher_and_learn_for_another_time(tmp_path):
    given = ["epochs=10", "lr=0.01", "student_phase=0.35", "student_lr=0.002"]
    fresh, warm = (
        phases(tmp_path/start, "teacher-student", *given, f"from_teacher={start}")
        for start in ("no", "yes")
    )
    for seen in (fresh, warm):
        assert (seen["teacher"].epochs, seen["student"].epochs) == (10, 4)
        assert (seen["teacher"].learner.peaks[0], seen["student"].learner.peaks[0]) == (.01, .002)
    assert starts_from(warm["student"], warm["teacher"]) and not starts_from(
        fresh["student"], fresh["teacher"]
    )
    plain = phases(tmp_path/"plain", "teacher-student", "epochs=10", "lr=0.01")["student"]
    assert (plain.epochs, plain.learner.peaks[0]) == (10, .01)
