"UniMatch, number by number: what is settled, what is dropped, how long the second phase takes."
import warnings

import pytest
import torch
from helpers.phases import FOUR, make_job, make_views, phases, starts_from, weights
from helpers.toys import small, toy

from ctseg.data.batches import Batch
from ctseg.methods.unimatch import ClassThresholds, UniMatch, UniMatchSettings, complete_batch, second_epochs
from ctseg.recipes.fit import fit
from ctseg.training.method import Phase
from ctseg.training.setup import ScheduleSettings
from ctseg.training.step import Student, Teacher, step_gradients


def test_a_second_phase_has_its_own_length_and_rate(tmp_path):
    settings = ["epochs=8", "lr=0.01", "second_lr=0.003"]
    for second, epochs in [(.5, 4), (2, 16), (.01, 1)]:
        first, then = phases(tmp_path/str(second), "ctseg", *settings, f"second_phase={second}").values()
        assert [(t.phase.name, t.epochs, t.learner.peaks[0]) for t in (first, then)] == [
            ("supervised", 8, .01),
            ("unimatch", epochs, .003),
        ]
        assert starts_from(then, first)
    alone, = phases(tmp_path/"alone", "ctseg", *settings, "supervised_first=no").values()
    assert (alone.phase.name, alone.epochs, alone.learner.peaks[0]) == ("unimatch", 8, .01)


def test_few_annotated_slices_make_a_longer_second_phase():
    schedule = ScheduleSettings(epochs=20, batch_size=4)
    def epochs(labelled, unlabelled, **settings):
        return second_epochs(UniMatchSettings(**settings), schedule, labelled, unlabelled)
    assert epochs(8, 1000, second_phase=.5) == 10
    # 16 images an epoch, 40*4 in all
    assert epochs(16, 40, second_phase=.25, unlabelled_passes=4) == 10
    assert epochs(16, 41, second_phase=.25, unlabelled_passes=4) == 11
    assert epochs(16, 40, second_phase=.75, unlabelled_passes=4) == 15
    assert epochs(8, 1000, second_phase=.5, unlabelled_passes=15) == 60  # at most three times the first
    assert epochs(8, 1000, second_phase=4, unlabelled_passes=15) == 80
    assert epochs(8, 0, second_phase=.5, unlabelled_passes=15) == 10
    assert epochs(2, 10, second_phase=.5, unlabelled_passes=6) == 15  # fewer than a batch: they repeat


def test_it_completes_annotated_slices_where_none_is_unlabelled(tmp_path):
    def run(name, *settings):
        recipe = small("ctseg", "tau=0.5", "second_phase=1", *settings)
        return fit(toy(n=12, labelled=12), recipe, tmp_path/name, device="cpu", progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        completed = run("a")
    assert completed.read_history().phase.tolist() == ["supervised"]*2 + ["unimatch"]*2
    # the unexamined structures have taught something
    assert not torch.equal(weights(completed), weights(run("b", "consistency=0")))


def test_nothing_is_settled_below_its_certainty(tmp_path):
    for tau, settles in [(1, False), (.5, True)]:
        t = phases(tmp_path/str(tau), "ctseg", "cutmix=0", f"tau={tau}")["unimatch"]
        views = make_views(t)
        truth, seen = views["labelled"], views["strong 0"]
        more = seen.known[:4] & ~(truth.known[:, :, None, None] | (truth.mask > 0)[:, None])
        assert more.any() == seen.known[4:].any() == settles
        assert torch.equal(seen.mask[:4], truth.mask) or settles


def test_whole_channels_are_dropped_from_the_weak_view_alone(tmp_path, monkeypatch):
    t = phases(tmp_path, "unimatch", "feature_dropout=0.25")["unimatch"]
    asked, real = [], Student.__call__

    def spy(self, *views, between=None):
        asked.append((between, [len(v) for v in views]))
        return real(self, *views, between=between)
    monkeypatch.setattr(Student, "__call__", spy)
    step_gradients(t.stepper, FOUR, 0)
    (between, lengths), = asked
    out, = between([torch.ones(sum(lengths), 400, 2, 2)])
    rest, weak = out[:-lengths[-1]], out[-lengths[-1]:]
    assert len(weak) == 8 and (rest == 1).all()
    dropped = (weak == 0).all((2, 3))
    assert torch.allclose(weak[~dropped], torch.tensor(1/.75)) and not torch.equal(dropped[0], dropped[1])
    assert (dropped.float().mean(1) - .25).abs().max() < .1


@pytest.mark.parametrize("loss", ["dice", "ce-dice", "marginal", "masked"])
def test_unknown_is_no_background_for_the_unlabelled_whatever_the_loss(tmp_path, monkeypatch, loss):
    """A teacher sure of nothing: its student's strong views of unlabelled images teach nothing, also by
    losses that do not read `known`."""
    job = make_job(tmp_path, "unimatch", f"loss={loss}", "folds=4")
    half = .3 if job.loss.activation == "sigmoid" else .25
    monkeypatch.setattr(
        Teacher, "__call__", lambda self, image, presence=False: torch.full((len(image), 3, 32, 32), half)
    )
    method = UniMatch(UniMatchSettings(feature_dropout=0, cutmix=0))
    t = job.trainer(job.networks.make(), Phase("unimatch", job.labelled, method, job.unlabelled))
    view = make_views(t)["strong 0"][4:]
    logits = torch.randn(4, job.loss.out_chans(3), 32, 32, requires_grad=True)
    job.loss(logits, view.mask, view.known, view.weight).backward()
    assert logits.grad.abs().max() == 0


def test_every_class_above_its_own_bar_is_believed():
    "Thresholds by class: the surest class may fail a bar that a less sure one passes."
    b = Batch(
        torch.zeros(1, 1, 1, 2),
        torch.zeros(1, 1, 2, dtype=torch.long),
        torch.zeros(1, 2, dtype=bool),
        None,
        torch.tensor([0]),
    )
    prob = torch.tensor([[.85, .05], [.6, .05]]).reshape(1, 2, 1, 2)
    completed = complete_batch(b, prob, torch.tensor([.9, .5]), "sigmoid")
    assert completed.mask.flatten().tolist() == [2, 0] and completed.known.all()


def test_thresholds_follow_a_running_mean_and_outlive_a_checkpoint():
    g = torch.Generator().manual_seed(0)
    method, mean = UniMatch(UniMatchSettings(rebalance=True)), torch.zeros(3)
    for _ in range(5):
        prob = torch.rand(2, 3, 4, 4, generator=g)
        bars = method.complete.thresholds(prob)
        mean = .99*mean + .01*prob.amax((0, 2, 3))
        assert torch.allclose(bars, (.9*mean/mean.max()).clamp(min=.5))
    again = UniMatch(UniMatchSettings(rebalance=True))
    again.load_state_dict(method.state_dict())
    assert torch.equal(again.complete.thresholds(prob), method.complete.thresholds(prob))
    fresh = ClassThresholds(.9)
    assert fresh.mean_peak is None and UniMatch(UniMatchSettings()).state_dict() == {}
