"What a run takes over from an earlier one: weights by class name, and answers where nobody looked."
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.fake_runs import CPU, fake_run
from helpers.phases import phases
from helpers.runs import contents
from helpers.toys import make, tiny, toy
from safetensors.torch import save_file

from ctseg.core.anatomy import ClassMap
from ctseg.core.errors import InputError
from ctseg.core.json_files import read_json
from ctseg.data.batches import Batch
from ctseg.losses.registry import create_loss
from ctseg.models.base import read_weights
from ctseg.models.settings import make_model
from ctseg.prediction.earlier import OldNetwork, earlier_run, old_network, start_from
from ctseg.recipes.fit import fit
from ctseg.runs.recipe import Recipe
from ctseg.training.step import ViewLoss, make_views, piece_loss

NAMES = list(toy().classes.names)  # lung_left, lung_right, bar


def renamed(slices, names):
    "The same slices, the classes called otherwise."
    return replace(slices, classes=ClassMap.from_names(names))


def only(slices, *names):
    "The slices as if people had examined these classes alone."
    columns = np.array([name in names for name in slices.classes.names])
    ids = np.flatnonzero(~columns) + 1
    return replace(
        slices, known=slices.known & columns, masks=np.where(np.isin(slices.masks, ids), 0, slices.masks)
    )


def fresh(names, loss="masked", **model):
    "A fresh network, its loss and classes."
    recipe, loss = Recipe().change(**dict(model="attunet", width=4) | model), create_loss(loss)
    return make_model(recipe.model, loss.out_chans(len(names)), len(names)), loss, ClassMap.from_names(names)


@pytest.mark.parametrize("old_loss, "
                         "new_loss", [("masked", "masked"), ("marginal", "marginal"), ("marginal", "masked"), ("masked", "marginal")])
@pytest.mark.parametrize("names", [["heart", "kidney", "lung_left"], ["heart"], [*NAMES, "kidney"], ["kidney", "liver"]])
def test_rows_follow_the_names(tmp_path, old_loss, new_loss, names):
    old = fake_run(tmp_path/"old", toy(), loss=old_loss, presence=0.1)
    model, loss, classes = fresh(names, new_loss, presence=0.1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    start_from(earlier_run(old), classes)(model, loss)
    state, theirs = model.state_dict(), read_weights(old.weights)
    shift = {"masked": 0, "marginal": 1}
    for key in state:
        head, presence = key.startswith("head."), key.startswith("presence.")
        if not head and not presence:
            assert torch.equal(state[key], theirs[key]), key
            continue
        for i, name in enumerate(names):
            row = state[key][i + shift[new_loss]*head]
            if name in NAMES: assert torch.equal(row, theirs[key][NAMES.index(name) + shift[old_loss]*head])
            else: assert torch.equal(row, before[key][i + shift[new_loss]*head])
        if head and new_loss == "marginal":
            assert torch.equal(state[key][0], (theirs if old_loss == "marginal" else before)[key][0])


@pytest.mark.parametrize("old, new", [(0.1, 0.0), (0.0, 0.1)])
def test_a_presence_head_may_come_or_go(tmp_path, old, new):
    run = fake_run(tmp_path/"old", toy(), presence=old)
    model, loss, classes = fresh(NAMES, presence=new)
    start_from(earlier_run(run), classes)(model, loss)
    assert torch.equal(model.head.weight, read_weights(run.weights)["head.weight"])


@pytest.mark.parametrize("name", ["nnunet", "unet:resnet18", "missformer", "uctransnet"])
def test_every_kind_of_network(tmp_path, name):
    "Several output layers (deep supervision), layers inside libraries."
    from ctseg.prediction.earlier import inherited_state, row_names
    old, new = make(name, 3), make(name, 5)
    rows = dict.fromkeys(row_names(new, getattr(new, "heads", [new.head])), [(0, 4), (2, 0)])
    new.load_state_dict(inherited_state(new, old.state_dict(), rows, "old"))
    assert (
        rows
        and torch.equal(new.head.weight[4], old.head.weight[0])
        and torch.equal(new.head.weight[0], old.head.weight[2])
    )
    same = [torch.equal(v, old.state_dict()[k]) for k, v in new.state_dict().items() if k not in rows]
    assert all(same)


def test_other_sizes_are_fine_and_other_networks_are_told(tmp_path):
    old = fake_run(tmp_path/"old", toy(size=48))
    assert fit(
        toy(size=32),
        tiny("masked", "model=attunet", "width=4", "epochs=1"),
        tmp_path/"new",
        init=old,
        device="cpu",
        progress=False,
    ).finished
    for settings, words in (
        (["model=missformer"], "missformer.*--set model=attunet"),
        (["model=attunet", "width=8"], "another architecture or setting"),
        (["model=attunet", "width=4", "weights=x.pt"], "one of the two"),
    ):
        with pytest.raises(InputError, match=words) as e:
            fit(toy(), tiny("masked", *settings), tmp_path/"no", init=old, device="cpu", progress=False)
        assert "\n" not in str(e.value) and not (tmp_path/"no").exists()
    old.weights.unlink()
    for option in ("init", "teacher"):
        for name, words in ((old.folder, "not finished a phase"), (tmp_path/"nothing", "no run here")):
            with pytest.raises(InputError, match=words):
                fit(toy(), tiny("masked"), tmp_path/"no", device="cpu", progress=False, **{option: name})


def network(told, prob, unions=()):
    "An old network that answers `prob` [C_old, H, W] for every image; told: its classes among the new ones."
    class Member:
        def probabilities(self, image, plan): return prob[None].expand(len(image), -1, -1, -1)
    return OldNetwork(Member(), CPU, list(enumerate(np.flatnonzero(told))), np.array(told), unions)


def test_it_is_asked_about_old_classes_that_nobody_examined():
    """Two old classes (0, 2) and a new one (1); people looked for the new one on the first slice, for the
    first old one on the second. Each has a pixel that people drew."""
    known = torch.tensor([[False, True, False], [True, False, False]])
    mask = torch.tensor([[[0, 0, 2]], [[0, 0, 1]]])
    old = network([True, False, True], torch.full((2, 1, 3), .3))
    asked = old.asked(Batch(torch.zeros(2, 1, 1, 3), mask, known))
    assert asked[0, :, 0].tolist() == [[True, True, False], [False]*3, [True, True, False]]
    assert asked[1, :, 0].tolist() == [[False]*3, [False]*3, [True, True, False]]
    answers = old.probabilities(torch.zeros(2, 1, 1, 3))
    assert answers[:, 1].max() == 0 and torch.allclose(answers[:, [0, 2]], torch.tensor(.3))


def test_of_a_union_nothing_is_asked_and_of_its_members_where_nobody_examined_it():
    both = ((3, (1, 2)),)
    known = torch.tensor([[False]*3 + [True], [False, False, True, True]])
    batch = Batch(torch.zeros(2, 1, 1, 1), torch.zeros(2, 1, 1).long(), known)
    asked = network([True, True, True, False], torch.zeros(3, 1, 1), both).asked(batch)[..., 0, 0]
    assert asked.tolist() == [[True, True, False, False], [False]*4]


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_network_that_answers_as_the_old_one_has_nothing_to_learn_of_it(activation):
    "Also beside a union, whose logits say nothing; and the loss pushes any other answer towards the old one."
    loss, both = create_loss("marginal" if activation == "softmax" else "masked"), ((3, (1, 2)),)
    loss.unions = both
    logits = torch.randn(2, loss.out_chans(4), 4, 4, generator=torch.Generator().manual_seed(0))
    logits[:, loss.out_chans(4) - 4:][:, :2] += 2
    logits.requires_grad_()
    answers = loss.probabilities(logits).detach()
    batch = Batch(torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4).long(), torch.tensor([[False]*3 + [True]]*2))
    for shift in (0., .2):
        old = network([True, True, True, False], answers[0, :3], both)
        logits.grad = None
        other = (logits[:1] + shift*torch.arange(loss.out_chans(4)).view(1, -1, 1, 1))
        old(other, batch[:1], ViewLoss(loss)).backward()
        assert logits.grad.isfinite().all() and (logits.grad.abs().max() < 1e-6) == (shift == 0)


def test_weights_that_are_no_numbers_are_told(tmp_path):
    run = fake_run(tmp_path/"old", toy())
    weights = read_weights(run.weights)
    weights["head.weight"][0] = torch.nan
    save_file(weights, run.weights)
    for option in ("init", "teacher"):
        with pytest.raises(InputError, match="not finite") as e:
            fit(toy(), tiny("masked"), tmp_path/"no", device="cpu", progress=False, **{option: run})
        assert "\n" not in str(e.value) and not (tmp_path/"no").exists()


def test_a_teacher_must_share_a_class_and_a_mirror(tmp_path):
    old = earlier_run(fake_run(tmp_path/"old", toy()))
    with pytest.raises(InputError, match="knows none of the classes.*class_names.json") as e:
        old_network(old, tiny("masked"), ClassMap.from_names(["kidney"]), CPU)
    assert "\n" not in str(e.value)
    with pytest.raises(InputError, match="mirrored"):
        old_network(old, tiny("masked", "mirror=vertical"), toy().classes, CPU)
    with pytest.raises(InputError, match="for background; give --set loss="):
        old_network(old, tiny("original-attunet"), toy().classes, CPU)


@pytest.mark.parametrize("recipe", ["marginal-log", "unimatch"])
def test_killed_and_resumed_it_ends_the_same(tmp_path, recipe):
    old, new = fake_run(tmp_path/"old", toy()), only(toy(seed=1), "heart")
    settings = ["model=attunet", "width=4", "epochs=2"]
    settings += ["supervised_first=false"] if recipe == "unimatch" else []
    how = dict(init=old, teacher=old, device="cpu", progress=False)
    whole = fit(new, tiny(recipe, *settings), tmp_path/"whole", **how)
    class Killed(Exception): pass
    def kill(epoch, row, folder):
        if epoch == 1: raise Killed
    with pytest.raises(Killed): fit(new, tiny(recipe, *settings), tmp_path/"cut", callbacks=[kill], **how)
    cut = fit(new, tiny(recipe, *settings), tmp_path/"cut", resume=True, **how)
    assert contents(cut.folder) == contents(whole.folder)
    spec = read_json(whole/"recipe.json")
    assert (
        spec["init"] == spec["teacher"]
        and spec["init"]["run"] == "old"
        and "old" in (whole/"model_card.md").read_text()
    )


def test_a_resumed_run_takes_over_the_same(tmp_path):
    runs = [fake_run(tmp_path/f"old{seed}", toy(), seed=seed) for seed in (0, 1)]
    def kill(epoch, row, folder): return "stop"
    settings = tiny("masked", "model=attunet", "width=4")
    with pytest.raises(Exception, match="stop"):
        fit(toy(), settings, tmp_path/"new", init=runs[0], callbacks=[kill], device="cpu", progress=False)
    for other in (dict(init=runs[1]), {}, dict(init=runs[0], teacher=runs[0])):
        with pytest.raises(InputError, match="started with (init|teacher)"):
            fit(toy(), settings, tmp_path/"new", resume=True, device="cpu", progress=False, **other)


@pytest.mark.parametrize("recipe", ["marginal-log", "masked", "mean-teacher", "unimatch"])
def test_it_teaches_beside_every_method(tmp_path, recipe):
    "On the logits of the first view, which is the labelled one; the weight is a factor of its part."
    slices = only(toy(), "lung_right").concat(toy(seed=1))
    trainer = next(iter(phases(tmp_path, recipe, "second_phase=1" if recipe == "unimatch" else "width=4",
                               slices=slices).values()))
    stepper, size = trainer.stepper, slices.images.shape[1:]
    old = network([True]*len(slices.classes), torch.full((len(slices.classes), *size), .2))
    def loss_with(teach):
        taught = replace(stepper, setup=replace(stepper.setup, teach=teach))
        return piece_loss(taught, make_views(taught, torch.arange(4), 0), 0)
    seen = []
    def watched(logits, view, loss):
        seen.append(torch.equal(view.image, make_views(stepper, torch.arange(4), 0)["labelled"].image))
        return old(logits, view, loss)
    plain, whole, half = loss_with(None), loss_with(watched), loss_with(replace(old, weight=.5))
    assert seen == [True] and whole > plain
    torch.testing.assert_close(half, (plain + whole)/2)
