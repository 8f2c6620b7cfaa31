"The trainers on a stand-in for nnU-Net's engine, and where it is installed on nnU-Net's own."
import json
import sys
from pathlib import Path

import pytest
import torch
from helpers.nnunet import FakeTrainer, Loader, batch_of, home_of
from helpers.volumes import one_line

from ctseg.core.errors import InputError
from ctseg.integrations.nnunet_partial import PartialSettings, PartialTrainer, settings_from_environment
from ctseg.integrations.nnunet_setup import FILE, set_up, trainer_folder
from ctseg.integrations.nnunet_teacher import SemiSettings, SemiTrainer
from ctseg.integrations.nnunet_trainer import trainer_class

EXAMINED = {"p1": [1, 2, 3], "p2": [1], "p3": [], "p4": [], "p5": [2], "p6": []}


class Partial(PartialTrainer, FakeTrainer): "Supervised."
class Semi(SemiTrainer, FakeTrainer): "Semi-supervised."


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in ("CTSEG_NNUNET", "nnUNet_raw"): monkeypatch.delenv(name, raising=False)
    return home_of(tmp_path, EXAMINED)


def started(kind, home, **options):
    trainer = kind(home, **options)
    trainer.initialize()
    trainer.on_train_start()
    return trainer


def test_settings(monkeypatch):
    monkeypatch.setenv("CTSEG_NNUNET", "epochs=3  iterations=12 tau=0.7")
    assert settings_from_environment(SemiSettings) == SemiSettings(epochs=3, iterations=12, tau=0.7)
    for text in ("tau=0.7", "epochs", "epochs=0", "epochs=many"):
        monkeypatch.setenv("CTSEG_NNUNET", text)
        with pytest.raises(InputError) as e: settings_from_environment(PartialSettings)
        assert "epochs" in one_line(e) or "tau" in one_line(e)


def test_nnunets_length_unless_another_is_given(home, monkeypatch):
    trainer = started(Partial, home)
    lengths = lambda t: (t.num_epochs, t.num_iterations_per_epoch, t.num_val_iterations_per_epoch)
    assert lengths(trainer) == (1000, 250, 50)
    monkeypatch.setenv("CTSEG_NNUNET", "epochs=3 iterations=3")
    assert lengths(started(Partial, home)) == (3, 3, 1)


def begin_epoch(trainer, epoch):
    trainer.current_epoch = epoch
    trainer.on_train_epoch_start()


def test_which_cases_are_drawn(home, monkeypatch):
    assert [d.identifiers for d in started(Partial, home).datasets] == [["p1", "p2"], ["p5"]]
    monkeypatch.setenv("CTSEG_NNUNET", "epochs=4 warmup=0.5")
    trainer = started(Semi, home)
    incomplete = []
    for epoch in range(4):
        begin_epoch(trainer, epoch)
        incomplete.append(trainer.incomplete_loader)
    assert incomplete[:2] == [None, None] and incomplete[2] is incomplete[3]
    loaders = trainer.dataloader_train, trainer.dataloader_val, trainer.incomplete_loader
    assert [loader.cases for loader in loaders] == [["p1", "p2"], ["p5"], ["p2", "p3", "p4"]]
    trainer.on_train_end()
    assert [loader.ended for loader in loaders] == [False, False, True]  # nnU-Net ends its own
    written = json.loads((home.parent/"out"/"annotated_labels.json").read_text())
    assert written == EXAMINED
    told = [line for line in trainer.lines if "cases have labels" in line]
    assert len(told) == 2  # once of the training, once of the validation


@pytest.mark.parametrize("part", ["train_cases", "val_cases"])
def test_a_fold_without_labels_is_refused(home, part):
    trainer = type("T", (Partial,), {part: ("p3", "p4")})(home)
    trainer.initialize()
    with pytest.raises(InputError) as e: trainer.on_train_start()
    assert "splits_final.json" in one_line(e)


def test_regions_are_refused(home):
    with pytest.raises(InputError) as e: Partial(home, regions=True).initialize()
    assert "regions" in one_line(e)


def test_folds_beside_the_raw_data(home, monkeypatch, tmp_path):
    raw = tmp_path/"raw"/home.name
    raw.mkdir(parents=True)
    for name in ("annotated_labels.json", "dataset.json"): (raw/name).write_text((home/name).read_text())
    (raw/"splits_final.json").write_text(json.dumps([{"train": ["p1"], "val": ["p5"]}]))
    monkeypatch.setenv("nnUNet_raw", str(tmp_path/"raw"))
    started(Partial, home)
    kept = home/"splits_final.json"
    assert json.loads(kept.read_text())[0]["val"] == ["p5"]
    kept.write_text("[]")
    started(Partial, home)
    assert kept.read_text() == "[]"  # nnU-Net's own stay


@pytest.mark.parametrize("kind", [Partial, Semi])
def test_unknown_never_becomes_background(home, kind):
    trainer = started(kind, home)
    before = trainer.network.conv.bias.detach().clone()
    batch = batch_of("p2")  # the liver was examined, nothing of it is there
    batch["target"] = [torch.zeros_like(t) for t in batch["target"]]
    trainer.train_step(batch)
    moved = trainer.network.conv.bias.detach() - before
    assert moved[1] < 0 and (moved[[0, 2, 3]] > 0).all()


def test_resolutions_are_weighed_as_nnunet_does(home):
    trainer = started(Partial, home)
    batch = batch_of("p1", "p2")
    outputs = [o.detach() for o in trainer.network(batch["data"])]
    value = trainer.train_step(batch)["loss"]
    each = [trainer.case_loss(o, t).item() for o, t in zip(outputs, batch["target"])]
    assert value == pytest.approx((2*each[0] + each[1])/3, rel=1e-5)


@pytest.mark.parametrize("kind", [Partial, Semi])
def test_pseudo_dice_counts_examined_classes_only(home, kind):
    trainer = started(kind, home)
    batch = batch_of("p1", "p2")
    both = trainer.validation_step(batch)
    one = trainer.validation_step({"data": batch["data"][:1], "target": [t[:1] for t in batch["target"]], "keys": ["p1"]})
    for name in ("tp_hard", "fp_hard", "fn_hard"):
        assert (both[name][1:] == one[name][1:]).all()  # of p2 only the first class counts
    assert sum(both[name][0] - one[name][0] for name in ("tp_hard", "fp_hard", "fn_hard")) > 0
    assert trainer.validation_step(batch_of("p3"))["fp_hard"].sum() == 0


@pytest.mark.parametrize("kind", [Partial, Semi])
def test_checkpoints_name_the_class_that_builds_the_network(home, kind, tmp_path):
    trainer = started(kind, home)
    trainer.save_checkpoint(str(tmp_path/"c.pth"))
    checkpoint = torch.load(tmp_path/"c.pth", weights_only=False)
    assert checkpoint["trainer_name"] == "FakeTrainer" and checkpoint["ctseg_trainer"] == kind.__name__
    trainer.disable_checkpointing = True
    trainer.save_checkpoint(str(tmp_path/"d.pth"))
    assert not (tmp_path/"d.pth").exists()


def test_a_resumed_training_goes_on_as_if_nothing_had_happened(home, monkeypatch, tmp_path):
    monkeypatch.setenv("CTSEG_NNUNET", "epochs=4 warmup=0.25 tau=0.5 ema=0.9")
    batches = [[batch_of("p2", "p3", seed=2*e + i) for i in range(2)] for e in range(4)]

    def train(trainer, epochs):
        for epoch in epochs:
            begin_epoch(trainer, epoch)
            for batch in batches[epoch]: trainer.train_step(batch)
            trainer.on_validation_epoch_end([counts(hits=(5, 5, epoch))])

    whole, first = started(Semi, home), started(Semi, home)
    train(whole, range(4))
    train(first, range(2))
    first.save_checkpoint(str(tmp_path/"c.pth"))
    average = first.teacher.model.state_dict()
    stored = torch.load(tmp_path/"c.pth", weights_only=False)["network_weights"]
    assert all(torch.equal(stored[k], average[k]) for k in average)
    second = Semi(home)
    second.load_checkpoint(str(tmp_path/"c.pth"))
    second.on_train_start()
    assert second.current_epoch == 2 and second.teacher.learnt.tolist() == [True, True, False]
    assert second.dataloader_train.cases == ["p1", "p2"]
    train(second, range(2, 4))
    for a, b in ((whole.network, second.network), (whole.teacher.model, second.teacher.model)):
        assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def counts(hits=(5, 5, 5), missed=2):
    "What nnU-Net counts in a validation step."
    hits = torch.tensor(hits)
    return {"tp_hard": hits.numpy(), "fp_hard": (hits*0).numpy(), "fn_hard": (hits*0 + missed).numpy()}


def taught(home, hits, sure_of=2):
    "A trainer in its second epoch, with an average that is rather sure of one channel."
    trainer = started(Semi, home)
    for model in (trainer.network, trainer.teacher.model):
        model.conv.weight.data *= 0
        model.conv.bias.data = torch.eye(4)[sure_of]*3
    trainer.on_validation_epoch_end([counts(hits)])
    begin_epoch(trainer, 1)
    trainer.incomplete_loader = trainer.incomplete_loader and Loader(["p3", "p4"])
    return trainer


def unlabelled_batch():
    batch = batch_of("p3", "p4")
    batch["target"] = [torch.zeros_like(t) for t in batch["target"]]
    return batch


def test_one_step_learns_from_labelled_and_from_incomplete_cases(home, monkeypatch):
    def learnt_bias(hits, weight):
        monkeypatch.setenv("CTSEG_NNUNET", f"epochs=2 warmup=0.5 tau=0.5 ramp=0 consistency={weight}")
        trainer = taught(home, hits)
        trainer.train_step(batch_of("p1", "p2"))
        assert trainer.teacher.steps == 1
        return trainer.network.conv.bias.detach()

    none, once, twice = (learnt_bias((5, 5, 5), weight) for weight in (0, 1, 2))
    assert torch.equal(none, learnt_bias((0, 0, 0), 1))  # nothing is learnt, so nobody is asked
    assert torch.allclose(twice - none, 2*(once - none), atol=1e-6) and (once != none).any()


def test_the_student_sees_what_the_teacher_does_not(home, monkeypatch):
    monkeypatch.setenv("CTSEG_NNUNET", "epochs=2 warmup=0.5 tau=0.5")
    trainer, seen = taught(home, (5, 5, 5)), {}
    for name, network in (("student", trainer.network), ("teacher", trainer.teacher.model)):
        network.register_forward_pre_hook(lambda _, x, name=name: seen.setdefault(name, []).append(x[0]))
    labelled, weak = batch_of("p1", "p2"), next(trainer.incomplete_loader)
    trainer.train_step(labelled)
    assert torch.equal(seen["teacher"][0], weak["data"]) and len(seen["teacher"]) == 1
    assert torch.equal(seen["student"][1], labelled["data"])
    assert not torch.isclose(seen["student"][0], weak["data"]).all() and len(seen["student"]) == 2


@pytest.mark.parametrize("complete, asked", [(("p1",), False), (("p1", "p2"), True)])
def test_only_labelled_cases(home, monkeypatch, complete, asked):
    "What nobody examined on labelled cases is completed too; where all was examined there is nothing to do."
    monkeypatch.setattr(FakeTrainer, "train_cases", complete)
    monkeypatch.setenv("CTSEG_NNUNET", "epochs=2 warmup=0.5 tau=0.5")
    trainer = taught(home, (5, 5, 5))
    assert (trainer.incomplete_loader is not None) == asked
    trainer.train_step(batch_of("p1"))
    trainer.on_train_end()
    assert trainer.teacher.steps == 1


@pytest.mark.parametrize("sure_of, hits, up, down", [
    (0, (5, 5, 5), [0], [1, 2, 3]),
    (0, (5, 5, 0), [0, 3], [1, 2]),  # the third class was not learnt: it may be there
    (0, (0, 0, 0), [], []),
    (2, (5, 5, 5), [2], [0, 1, 3]),
    (2, (0, 5, 0), [2], [0, 1, 3]),  # what is one class is no other
    (2, (5, 0, 5), [], []),
])
def test_the_teacher_is_believed_about_learnt_classes_only(home, monkeypatch, sure_of, hits, up, down):
    monkeypatch.setenv("CTSEG_NNUNET", "epochs=2 warmup=0.5 tau=0.5 ramp=0")
    trainer = taught(home, hits, sure_of)
    before = trainer.network.conv.bias.detach().clone()
    trainer.train_step(unlabelled_batch())
    moved = trainer.network.conv.bias.detach() - before
    assert (moved[up] > 0).all() and (moved[down] < 0).all()
    assert moved.abs().max() < 1e-6 or up


@pytest.mark.parametrize("hits, learnt", [((2, 2, 2), True), ((1, 1, 1), False), ((0, 0, 0), False)])
def test_learnt_from_a_pseudo_dice_on(home, monkeypatch, hits, learnt):
    monkeypatch.setenv("CTSEG_NNUNET", "min_dice=0.8")
    trainer = started(Semi, home)
    assert not trainer.teacher.learnt.any()
    trainer.on_validation_epoch_end([counts(hits, missed=1), counts(hits, missed=0), counts((0, 0, 0), missed=1)])
    assert trainer.teacher.learnt.tolist() == [learnt]*3
    trainer.on_validation_epoch_end([counts((0, 0, 0), missed=0)])  # not seen in this epoch
    assert not trainer.teacher.learnt.any()


@pytest.mark.parametrize("kind", [Partial, Semi])
def test_the_last_scores(home, kind):
    trainer = started(kind, home)
    if kind is Semi: trainer.teacher.model.conv.bias.data += 1
    before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    trainer.perform_actual_validation()
    predicts = trainer.teacher.model if kind is Semi else trainer.network
    assert all(torch.equal(v, trainer.predicted_with[k]) for k, v in predicts.state_dict().items())
    assert all(torch.equal(v, before[k]) for k, v in trainer.network.state_dict().items())
    summary = json.loads((Path(trainer.output_folder)/"validation"/"summary.json").read_text())
    assert summary["foreground_mean"]["Dice"] == 1.0  # p5's kidney is all that was examined
    assert "1.0000" in trainer.lines[-1]


def test_without_nnunet(monkeypatch):
    trainer_class.cache_clear()
    monkeypatch.setitem(sys.modules, "nnunetv2.training.nnUNetTrainer.nnUNetTrainer", None)
    with pytest.raises(InputError) as e: trainer_class("nnUNetTrainerPartial")
    assert "pip install" in one_line(e)


def test_set_up_and_undo(tmp_path, capsys):
    assert set_up(["--folder", str(tmp_path/"ext")]) == 0
    text = (tmp_path/"ext"/FILE).read_text()
    assert "nnUNet_extTrainer=" in capsys.readouterr().out
    names = {}
    exec(compile(text, FILE, "exec"), names)
    for other in ("nnUNetTrainer", "nnUNetTrainerPartialOther", "__path__"):
        with pytest.raises(AttributeError): names["__getattr__"](other)
    assert set_up(["--folder", str(tmp_path/"ext"), "--undo"]) == 0 and not (tmp_path/"ext"/FILE).exists()
    assert set_up(["--folder", str(tmp_path/"ext"), "--undo"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and FILE in error


def test_set_up_without_nnunet(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError) as e: trainer_folder()
    assert "pip install" in one_line(e)
