"Every method on a toy problem: it trains, resumes exactly, and without unlabelled images is the supervised method."
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from ctseg.anatomy import ClassMap
from ctseg.data import Batch, SliceSet, grouped_folds
from ctseg.device import pick_device
from ctseg.files import InputError
from ctseg.methods import mean_teacher, self_training, teacher_student
from ctseg.methods.unimatch import UniMatch, complete_batch
from ctseg.pseudo import PseudoLabels, accept_cells, check_truth_kept, complete, keep_images, pseudo_label
from ctseg.recipes import METHODS, apply_settings, check_job, fit, get_recipe
from ctseg.train import Job, Method, Recipe, Run, Trainer

SMALL = ["width=4", "epochs=2", "batch_size=4", "folds=4", "teachers=2", "finetune_epochs=1", "keep=0.5", "quota=1", "gate=0", "pixel=0", "absent=1"]
SEMI = {"teacher-student": "seed-teacher-student", "pretrain-finetune": "seed-pretrain-finetune", "mean-teacher": "mean-teacher",
        "unimatch": "unimatch", "self-training": "self-training"}


def toy(n=24, labelled=12, size=32, seed=0, every=False) -> SliceSet:
    "A disc left, a disc right and a bright bar; two of three classes examined on each labelled slice."
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    images, masks = np.zeros((2, n, size, size), np.uint8)
    for i in range(n):
        for c, (cx, level) in enumerate([(size//4, 120), (3*size//4, 120), (size//2, 220)], 1):
            if rng.random() < 0.3: continue
            cy, cx = rng.integers(8, size - 8), cx + rng.integers(-2, 3)
            m = (y - cy)**2 + (x - cx)**2 < 20 if c < 3 else (abs(y - cy) < 2) & (abs(x - cx) < 4)
            images[i][m], masks[i][m] = level, c
        images[i] = np.clip(images[i] + rng.normal(40, 8, (size, size)), 0, 255)
    known = np.zeros((n, 3), bool)
    for i in range(labelled): known[i, rng.choice(3, 3 if every else 2, replace=False)] = True
    for c in range(3): masks[~known[:, c][:, None, None] & (masks == c + 1)] = 0
    return SliceSet(images, masks, known, [f"{i}.png" for i in range(n)], np.arange(n)//2, ClassMap.from_names(["disc_left", "disc_right", "bar"]))


def weights(run): return torch.cat([v.flatten().float() for v in torch_load(run).values()])


def torch_load(run):
    from safetensors.torch import load_file
    return load_file(run.weights)


@pytest.mark.parametrize("name", ["masked", *SEMI.values()])
@pytest.mark.parametrize("loss", ["marginal", "masked"])
def test_a_run_cut_in_any_phase_ends_as_the_whole_one(tmp_path, monkeypatch, name, loss):
    if name.startswith("seed") and loss == "masked": pytest.skip("the original has one loss")
    recipe = apply_settings(get_recipe(name), SMALL + ([] if name.startswith("seed") else [f"loss={loss}"]))
    whole = fit(toy(), recipe, tmp_path/"whole", device="cpu", progress=False)
    ends, real = [], Trainer.end_epoch

    def cut(self):
        real(self)
        ends.append(self.phase)
        if len(ends) == at: raise KeyboardInterrupt
    total = len(whole.read_history())
    times = pd.read_csv(whole/"timings.csv")
    assert len(times) == total and (times.seconds > 0).all() and times["where"].str.fullmatch(r"cpu \(.+\), fp32").all()
    for at in {1, total//2, total - 1}:
        ends.clear()
        monkeypatch.setattr(Trainer, "end_epoch", cut)
        with pytest.raises(KeyboardInterrupt): fit(toy(), recipe, tmp_path/f"cut{at}", device="cpu", progress=False)
        monkeypatch.setattr(Trainer, "end_epoch", real)
        again = fit(toy(), recipe, tmp_path/f"cut{at}", device="cpu", progress=False, resume=True)
        assert torch.equal(weights(again), weights(whole))
        assert (again/"history.csv").read_text() == (whole/"history.csv").read_text()


@pytest.mark.parametrize("name", ["seed-teacher-student", "seed-pretrain-finetune", "mean-teacher", "unimatch"])
def test_without_unlabelled_images_a_method_is_its_supervised_form(tmp_path, name):
    slices = toy(n=12, labelled=12, every=True)  # nothing is unknown: no term of any method has anything to act on
    recipe = apply_settings(get_recipe(name), SMALL + ["consistency=0"] if name == "mean-teacher" else SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = fit(slices, recipe, tmp_path/"semi", device="cpu", progress=False)
    phase = run.read_history().phase.iloc[0]
    base = replace(recipe, method="supervised")
    job = Job(base, slices, Run(tmp_path/"sup"), seed=0, progress=False)
    job.train(phase)  # the same name, so the same random numbers
    assert torch.equal(weights(run), weights(job.run))


def test_unimatch_completes_annotated_slices_where_none_is_unlabelled(tmp_path):
    recipe = apply_settings(get_recipe("ctseg"), [*SMALL, "tau=0.5", "second=1"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = fit(toy(n=12, labelled=12), recipe, tmp_path/"a", device="cpu", progress=False)
    assert run.read_history().phase.tolist() == ["supervised"]*2 + ["unimatch"]*2
    still = fit(toy(n=12, labelled=12), replace(recipe, consistency=0.), tmp_path/"b", device="cpu", progress=False)
    assert not torch.equal(weights(run), weights(still))  # the unexamined structures have taught something


def test_a_student_with_perfect_pseudo_labels_beats_its_teacher(tmp_path):
    few, truth = toy(n=60, labelled=3, seed=1, size=24), toy(n=60, labelled=60, seed=1, size=24, every=True)
    assert np.array_equal(few.images, truth.images)
    unlabelled = truth[~few.labelled]
    test = toy(n=40, labelled=40, seed=2, size=24, every=True)
    recipe = apply_settings(get_recipe("marginal"), ["width=8", "epochs=80", "batch_size=4", "fold=-1", "augment=none", "lr=0.01", "ema=0.9"])
    job = Job(recipe, few, Run(tmp_path/"run"), progress=False)
    teacher = job.train("teacher")
    student = job.train("student", method=teacher_student.Student(teacher, weight=0), extra=unlabelled)

    def dice(model):
        from ctseg.metrics import challenge_dice
        from ctseg.train import predict_labels
        return challenge_dice(predict_labels(model, test, job.loss, "cpu"), test.masks, 3)
    assert dice(student) > dice(teacher) + 0.2


def some_pseudo(slices, seed=0):
    rng = np.random.default_rng(seed)
    n, c = len(slices), len(slices.classes)
    labels = rng.integers(0, c + 1, slices.masks.shape).astype(np.uint8)
    sdc = rng.random((n, c)).astype(np.float32)
    return PseudoLabels(labels, rng.integers(0, 256, labels.shape).astype(np.uint8), sdc, rng.random((n, c)).astype(np.float32),
                        np.full((n, c), np.nan, np.float32), {"max": rng.random(n), "sdc": rng.random(n)})


@pytest.mark.parametrize("seed", range(5))
def test_truth_is_never_overwritten(seed):
    slices = toy(seed=seed)
    pseudo = some_pseudo(slices, seed)
    present, absent = accept_cells(pseudo, slices.known, quota=1, gate=0, absent=1)
    assert not (present & slices.known).any() and not (absent & slices.known).any()
    done, teaches = complete(slices, pseudo, present, absent, pixel=0.5)
    check_truth_kept(slices, done)
    assert (done.masks != slices.masks).any()
    assert teaches[slices.masks > 0].all()
    broken = replace(done, masks=np.where(slices.masks > 0, 0, done.masks))
    with pytest.raises(AssertionError): check_truth_kept(slices, broken)


def test_quotas_are_by_class():
    slices = toy(labelled=0)
    pseudo = some_pseudo(slices)
    sure = replace_array(pseudo, "sdc", pseudo.sdc*np.float32([1, 1, 0.01]))  # the third class is never confident
    present, _ = accept_cells(sure, slices.known, quota=0.25, gate=0.0)
    assert present.sum(0).tolist() == [6, 6, 6]
    assert sure.sdc[:, 0][present[:, 0]].min() >= sure.sdc[:, 0][~present[:, 0]].max()


def replace_array(p, name, value): return replace(p, **{name: value})


def test_keeping_images():
    slices = toy(labelled=0)
    pseudo = some_pseudo(slices)
    kept = keep_images(pseudo, slices, 5, "max")
    assert len(kept) == 5 and kept.known.all()
    lowest = min(pseudo.scores["max"][slices.names.index(n)] for n in kept.names)
    assert lowest >= np.sort(pseudo.scores["max"])[-5]
    assert len(keep_images(pseudo, slices, 0.25)) == 6
    with pytest.warns(UserWarning, match="only 24"): assert len(keep_images(pseudo, slices, 999)) == 24
    with pytest.raises(InputError, match="did you mean"): keep_images(pseudo, slices, 5, "maks")


def test_pixels_of_weight_zero_never_reach_the_gradient():
    from ctseg.losses import create_loss
    for name in ("marginal", "masked"):
        loss = create_loss(name)
        mask, known = torch.zeros(2, 8, 8, dtype=torch.long), torch.ones(2, 3, dtype=torch.bool)
        mask[:, 2:4, 2:4] = 1
        weight = torch.ones(2, 1, 8, 8)
        weight[:, :, :, 4:] = 0
        z = torch.randn(2, loss.out_chans(3), 8, 8, requires_grad=True)
        loss(z, mask, known, weight).backward()
        assert z.grad[..., 4:].abs().max() == 0 and z.grad[..., :4].abs().max() > 0


def test_teachers_never_saw_the_truth_they_complete(tmp_path, monkeypatch):
    seen, real = {}, Job.train

    def spy(self, phase, slices=None, *a, **kw):
        seen[phase] = set((self.labelled if slices is None else slices).groups.tolist())
        return real(self, phase, slices, *a, **kw)
    monkeypatch.setattr(Job, "train", spy)
    filled = []
    monkeypatch.setattr(self_training, "fill_in", lambda job, teachers, slices, real=self_training.fill_in: filled.append((len(teachers), set(slices.groups.tolist()), slices.labelled.all())) or real(job, teachers, slices))
    recipe = apply_settings(get_recipe("self-training"), SMALL + ["rounds=2"])
    fit(toy(), recipe, tmp_path/"run", device="cpu", progress=False)
    out_of_fold = [g for n, g, labelled in filled if labelled and n == 1]
    assert len(out_of_fold) == 2
    for k, groups in enumerate(out_of_fold, 1):
        for n in (1, 2): assert not seen[f"teacher-{n}-{k}"] & groups


@pytest.mark.parametrize("name", SEMI.values())
def test_a_network_may_work_at_another_size_than_the_images(tmp_path, name):
    fit(toy(), apply_settings(get_recipe(name), SMALL + ["image_size=16", "epochs=1"]), tmp_path/"run", device="cpu", progress=False)


def test_a_teacher_sure_of_nothing_adds_nothing(tmp_path):
    recipe = apply_settings(get_recipe("self-training"), SMALL[:7] + ["gate=1", "absent=0"])
    run = fit(toy(), recipe, tmp_path/"run", device="cpu", progress=False)
    cells = pd.read_csv(run/"pseudo_cells.csv")
    assert cells["present added"].sum() == 0 and cells["absent added"].sum() == 0


def test_unlabelled_images_can_be_rationed(tmp_path):
    job = lambda *more: Job(apply_settings(get_recipe("mean-teacher"), [*SMALL, *more]), toy(), Run(tmp_path), seed=3)
    assert [len(job(f"unlabelled={n}").unlabelled) for n in (-1, 0, 5, 99)] == [12, 0, 5, 12]
    few, more = job("unlabelled=4").unlabelled.names, job("unlabelled=8").unlabelled.names
    assert set(few) < set(more) and len(job("unlabelled=4").labelled) == len(job().labelled)


def test_unknown_is_no_background_for_the_unlabelled_whatever_the_loss(tmp_path):
    "A teacher sure of nothing: its student's strong views of unlabelled images teach nothing, also by losses that do not read `known`."
    for loss in ("dice", "ce-dice", "marginal", "masked"):
        job = Job(apply_settings(get_recipe("unimatch"), [*SMALL, f"loss={loss}", "feature_dropout=0", "cutmix=0"]), toy(), Run(tmp_path/loss), progress=False)
        t = job.trainer(job.make_model(), "unimatch", job.labelled, UniMatch(feature_dropout=0, cutmix=0), None, extra=job.unlabelled)
        t.ask = lambda teacher, image: torch.full((len(image), 3, 32, 32), .3 if job.loss.activation == "sigmoid" else .25)
        view = t.look(torch.arange(4))["strong 0"][4:]
        logits = torch.randn(4, job.loss.out_chans(3), 32, 32, requires_grad=True)
        job.loss(logits, view.mask, view.known, view.weight).backward()
        assert logits.grad.abs().max() == 0, loss


def test_every_class_above_its_own_bar_is_believed():
    "Thresholds by class: the surest class may fail a bar that a less sure one passes."
    b = Batch(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 2, dtype=torch.long), torch.zeros(1, 2, dtype=bool), None, torch.tensor([0]))
    prob = torch.tensor([[.85, .05], [.6, .05]]).reshape(1, 2, 1, 2)
    done = complete_batch(b, prob, torch.tensor([.9, .5]), "sigmoid")
    assert done.mask.flatten().tolist() == [2, 0] and done.known.all()


@pytest.mark.parametrize("name", ["seed-teacher-student", "seed-pretrain-finetune"])
def test_a_filter_that_keeps_nothing_leaves_the_teacher(tmp_path, name):
    with pytest.warns(UserWarning, match="none that is kept"):
        run = fit(toy(), apply_settings(get_recipe(name), [*SMALL, "keep=0"]), tmp_path/"a", device="cpu", progress=False)
    assert set(run.read_history().phase) == {"teacher"} and (run/"metrics.json").exists()


def test_consistency_does_not_turn_unknown_into_background():
    "One free pixel with an unknown structure and one that people looked for in vain: between loss and teacher, the student ends at the teacher's shares of what is open."
    from ctseg.losses import create_loss
    from ctseg.methods.mean_teacher import disagreement, unknown_cells
    loss, mask, known = create_loss("marginal", w_dice=0.), torch.zeros(1, 1, 1, dtype=torch.long), torch.tensor([[False, True]])
    teacher, where = torch.tensor([.45, .4]).view(1, 2, 1, 1), unknown_cells(mask, known)
    z = torch.tensor([.1, .3, .6]).log().view(1, 3, 1, 1).requires_grad_()
    opt = torch.optim.Adam([z], lr=.05)
    for _ in range(400):
        opt.zero_grad()
        (loss(z, mask, known) + disagreement(loss.probabilities(z), teacher, where, loss.activation)).backward()
        opt.step()
    assert torch.allclose(z.softmax(1).flatten(), torch.tensor([.25, .75, 0]), atol=.02)


def test_a_teacher_that_contradicts_the_truth_is_heard_of_background_only():
    "The left kidney was looked for in vain, the right one not looked for; what a teacher sure of the left one has left over is no evidence of the right one."
    from ctseg.methods.mean_teacher import disagreement, unknown_cells
    from ctseg.methods.unimatch import complete_batch
    p = torch.tensor([[.97, .97, .001], [.029, .0, .98]]).reshape(1, 2, 1, 3)  # contradicts, and would draw the right one; contradicts, else nothing; is sure of the right one
    b = Batch(torch.zeros(1, 1, 1, 3), torch.zeros(1, 1, 3, dtype=torch.long), torch.tensor([[True, False]]), None, torch.tensor([0]))
    done = complete_batch(b, p, .9, "softmax")
    assert done.known[0, :, 0].int().tolist() == [[1, 1, 1], [0, 1, 1]] and done.mask.flatten().tolist() == [0, 0, 2]
    student = torch.full((1, 2, 1, 3), .4, requires_grad=True)
    disagreement(student, p, unknown_cells(b.mask, b.known), "softmax").backward()
    assert student.grad[..., 0].abs().max() == 0 and (student.grad[0, 1, 0, 1:].abs() > 0).all()


@pytest.mark.parametrize("C", [3, 54])
def test_consistency_means_the_same_for_any_number_of_classes(C):
    from ctseg.methods.mean_teacher import disagreement
    a, b = (torch.zeros(1, C, 2, 2).index_fill(1, torch.tensor([c]), 1.) for c in (0, 1))
    assert disagreement(a, b, torch.ones(1, C, 2, 2, dtype=torch.bool), "softmax") == 2


def test_a_structure_that_a_warp_loses_is_unknown():
    from ctseg.augment import MILD, warp
    mask = torch.zeros(200, 32, 32, dtype=torch.long)
    mask[:, 16, 16], mask[:, 4:12, 4:12] = 1, 2
    b = Batch(torch.zeros(200, 1, 32, 32), mask, torch.ones(200, 3, dtype=torch.bool), None, torch.arange(200))
    new = MILD(b, torch.Generator().manual_seed(0))
    there = torch.stack([(new.mask == c).flatten(1).any(1) for c in (1, 2, 3)], 1)
    assert 0 < (~there[:, 0]).sum() < 50 and torch.equal(new.known[:, 0], there[:, 0])  # some are lost, and those only are unknown
    assert there[:, 1].all() and new.known[:, 1:].all() and b.known.all()


def unexamined(slices, c):
    "The same, nobody having looked for class c + 1."
    known = slices.known.copy(); known[:, c] = False
    return replace(slices, known=known, masks=np.where(slices.masks == c + 1, 0, slices.masks))


@pytest.mark.parametrize("c", [0, 2])
def test_what_nobody_looked_for_is_never_drawn(tmp_path, c):
    "A softmax that hears nothing of a class, not even that it is absent, may put it anywhere: as good as background wherever another class is unknown."
    slices = unexamined(toy(n=16, labelled=16, size=24, every=True), c)
    job = Job(apply_settings(get_recipe("marginal-log"), ["width=4", "epochs=15", "batch_size=4", "fold=-1", "augment=none", "lr=0.01", "ema=0.8"]), slices, Run(tmp_path), progress=False)
    from ctseg.train import predict_labels
    assert not (predict_labels(job.train("supervised"), slices, job.loss, "cpu") == c + 1).any()


def test_closing_what_nobody_looked_for_says_so_and_leaves_the_rest(tmp_path):
    slices = unexamined(toy(), 1)
    with pytest.warns(UserWarning, match="nobody looked for disc_right on any slice"):
        check_job(job := Job(apply_settings(get_recipe("masked"), SMALL), slices, Run(tmp_path), progress=False))
    kept = np.isin(slices.names, job.labelled.names)
    assert job.labelled.known[:, 1].all() and not job.holdout.known[:, 1].any() and not job.unlabelled.known.any()
    np.testing.assert_array_equal(job.labelled.known[:, [0, 2]], slices.known[kept][:, [0, 2]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_job(Job(apply_settings(get_recipe("masked"), SMALL), toy(), Run(tmp_path), progress=False))
        Job(apply_settings(get_recipe("masked"), SMALL), slices, Run(tmp_path), progress=False)  # said where a training begins, not wherever somebody asks what a run has held out


def test_a_teacher_cannot_call_absent_what_it_was_never_told_about(tmp_path, monkeypatch):
    job = Job(apply_settings(get_recipe("self-training"), [*SMALL, "fold=-1"]), toy(), Run(tmp_path), progress=False)
    slices, fold = job.labelled, np.arange(len(job.labelled)) % 2
    known = slices.known.copy(); known[fold == 1, 0] = False  # so teacher 0, which learns from fold 1, knows nothing of class 1
    masks = np.where((slices.masks == 1) & (fold == 1)[:, None, None], 0, slices.masks)
    monkeypatch.setattr(self_training, "fill_in", lambda job, teachers, s: (replace(s, known=np.ones_like(s.known)), np.ones(s.masks.shape, bool)))
    done, _ = self_training.out_of_fold(job, [None, None], replace(slices, known=known, masks=masks), fold)
    np.testing.assert_array_equal(done.known[fold == 0][:, 0], known[fold == 0][:, 0])
    assert done.known[fold == 1].all() and done.known[:, 1:].all()


def test_a_mirrored_slice_keeps_what_people_looked_for_on_its_own_side(tmp_path):
    job = Job(apply_settings(get_recipe("self-training"), [*SMALL, "fold=-1", "augment=none", "mirror=horizontal"]), toy(), Run(tmp_path), progress=False)
    people = np.zeros((len(job.labelled), 3), bool); people[:, 1] = True
    done = replace(job.labelled, known=np.ones_like(people))
    sure = np.ones(done.masks.shape, np.uint8); sure[:, :, :10] = 0  # at the left border only people are to be heard
    t = job.trainer(job.make_model(), "student", done, self_training.NoisyStudent(0, people), None, pixel_weights=sure)
    known = t.look(torch.arange(len(done)))["labelled"].known
    plain = torch.ones(3, 32, 32, dtype=torch.bool); plain[[0, 2], :, :10] = False
    mirrored = plain.flip(-1)[[1, 0, 2]]
    n = sum(torch.equal(k, mirrored) for k in known)
    assert 0 < n < len(done) and n + sum(torch.equal(k, plain) for k in known) == len(done)


def test_a_turn_brings_in_corners_as_known_as_the_rest():
    from ctseg.augment import affine_grid, warp
    known = torch.tensor([[True, False, True]]).view(1, 3, 1, 1).repeat(4, 1, 16, 16)
    known[:, 2, 5:7] = False
    b = Batch(torch.ones(4, 1, 16, 16), torch.zeros(4, 16, 16, dtype=torch.long), known, None, torch.arange(4))
    new = warp(b, affine_grid(4, (16, 16), torch.Generator().manual_seed(0), degrees=40, scale=0, shift=0))
    corner = new.image[:, 0] == 0
    assert corner.any() and new.known[:, 0].all() and not new.known[:, 1].any() and not new.known[:, 2][corner].any()


def test_consistency_leaves_a_presence_head_unasked_on_both_sides(tmp_path):
    "The student's pixels are compared with the teacher's pixels; with the teacher's presence in its answer alone, the two could never agree."
    for name, extra in (("mean-teacher", "perturb=none"), ("teacher-student", "keep=4")):
        job = Job(apply_settings(get_recipe(name), [*SMALL, "presence=1", "loss=masked", extra]), toy(), Run(tmp_path/name), progress=False)
        model = job.make_model()
        torch.nn.init.constant_(model.presence.linear.bias, -3.)  # presence far from 1
        asked, real = [], Trainer.ask
        def ask(self, teacher, image, presence=True):
            asked.append(presence)
            out = real(self, teacher, image, presence)
            assert torch.equal(out, job.loss.probabilities(teacher(image).detach().float()))
            return out
        t = job.trainer(model, "x", job.labelled, teacher_student.Student(model) if name == "teacher-student" else mean_teacher.MeanTeacher(), None, extra=job.unlabelled)
        t.ask = ask.__get__(t)
        t.method.start(t) if name == "teacher-student" else t.ema.model.eval()
        t.method.loss(t, t.look(torch.arange(4)))
        assert asked == [False]


def test_a_structure_that_people_looked_for_in_vain_is_no_evidence_of_background():
    "Left kidney: looked for, absent; right kidney: not looked for. Where the teacher is sure of a left one, nothing is known of the right one."
    known = np.array([[True, False]])
    slices = SliceSet(np.zeros((1, 1, 10), np.uint8), np.zeros((1, 1, 10), np.uint8), known, ["0.png"], np.zeros(1, int), ClassMap.from_names(["kidney_left", "kidney_right"]))
    labels = np.array([[[2]*5 + [1]*3 + [0]*2]], np.uint8)
    pseudo = PseudoLabels(labels, np.full(labels.shape, 250, np.uint8), np.array([[.9, .9]], np.float32), np.array([[.9, .9]], np.float32), np.full((1, 2), np.nan, np.float32), {})
    done, teaches = complete(slices, pseudo, *accept_cells(pseudo, known, quota=1))
    assert done.masks.flatten().tolist() == [2]*5 + [0]*5 and done.known.all()
    assert teaches.flatten().tolist() == [True]*5 + [False]*3 + [True]*2


def test_a_finished_run_that_is_looked_into_stays_what_it_is(tmp_path):
    recipe = apply_settings(get_recipe("seed-teacher-student"), SMALL)
    run = fit(toy(), recipe, tmp_path/"a", device="cpu", progress=False)
    before = weights(run), (run/"history.csv").read_text()
    teacher = Job(recipe, toy(), run, progress=False).train("teacher")
    assert (run/"history.csv").read_text() == before[1] and torch.equal(weights(run), before[0])
    assert not torch.equal(torch.cat([v.flatten().float() for v in teacher.state_dict().values()]), before[0])


def test_slices_of_the_same_name_are_not_mistaken_for_one_another(tmp_path):
    from ctseg.predict import held_out_by
    a, b = toy(12, 12), toy(12, 12, seed=1)
    both = a.concat(replace(b, groups=b.groups + 100))
    recipe = apply_settings(get_recipe("masked"), [*SMALL, "epochs=1"])
    run = fit(both, recipe, tmp_path/"a", device="cpu", progress=False)
    out, job = held_out_by(run, both), Job(recipe, both, run, progress=False)
    assert out.sum() == len(job.holdout) and np.array_equal(both[out].images, job.holdout.images)


def test_nothing_of_a_held_out_patient_is_learnt_from(tmp_path):
    "Neither its truth nor its pictures: unlabelled slices of held-out groups stay out, the others stay, and as many are chosen as were asked for."
    slices = replace(toy(24, labelled=12), groups=np.r_[np.arange(12)//2, np.arange(12)//2])  # each patient has two annotated slices and two others
    recipe = Recipe("x", "", "unimatch", width=4, folds=3)
    for fold in range(3):
        job = Job(replace(recipe, fold=fold), slices, Run(tmp_path/str(fold)), pick_device("cpu"))
        assert len(job.holdout) == 4 and not set(job.holdout.groups) & (set(job.labelled.groups) | set(job.unlabelled.groups))
        assert len(job.labelled) == len(job.unlabelled) == 8
        with pytest.warns(UserWarning, match="4 unlabelled images are of held-out patients"): check_job(job)
        assert len(Job(replace(recipe, fold=fold, unlabelled=5), slices, Run(tmp_path/"some"), pick_device("cpu")).unlabelled) == 5
    assert len(Job(replace(recipe, fold=-1), slices, Run(tmp_path/"all"), pick_device("cpu")).unlabelled) == 12
