"From runs to a submission: rules, views, ensembles tuned without leaking, the float16 store, streaming, calibration; and every mistake in one line."
import itertools, tracemalloc, zipfile
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from skimage.io import imsave
from torch import nn

from ctseg import predict as P
from ctseg.anatomy import ClassMap
from ctseg.calibrate import calibrate, calibrate_run, fit_temperature, known_nll, prepare, reliability
from ctseg.data import SliceSet, read_masks, write_challenge
from ctseg.device import pick_device
from ctseg.files import InputError, read_json, write_json
from ctseg.predict import Member, Predictor, Rule, StoredProbabilities, View, decide, drop_islands, load_predictor, out_of_fold, predict_folder, predict_masks, rescue, tta_views
from ctseg.train import Job, Recipe, Run, save_weights

from test_cli import ctseg
from test_methods import toy

CPU = pick_device("cpu")
LR = ClassMap.from_names(["disc_left", "disc_right", "bar"])


def fake_run(folder, slices, seed=0, rule=None, **recipe) -> Run:
    "A run folder as `fit` leaves it, of a network that was never trained: quick, and as good as any to be loaded."
    recipe = Recipe("fake", **dict(model="attunet", width=4, folds=4, loss="masked") | recipe)
    run = Run(folder)
    run.open(asdict(recipe), slices, seed)
    save_weights(Job(recipe, slices, run, CPU, seed).make_model(), run.weights)
    if rule: write_json({"rule": rule}, run/"metrics.json")
    return run


class Fixed(nn.Module):
    "A 'network' whose answer is a function of the image; it remembers what it was shown."
    activation = "sigmoid"
    def __init__(self, f): super().__init__(); self.f, self.shown = f, []
    def forward(self, x): self.shown += [i.numpy().tobytes() for i in x]; return self.f(x)
    def probabilities(self, logits): return logits


def fixed(f, classes=LR, **kw): return Predictor([Member(m := Fixed(f), m, **kw)], classes, CPU)


# ---- rules

@settings(max_examples=60, deadline=None)
@given(arrays(np.uint8, (2, 9, 8), elements=st.integers(0, 3)), st.integers(1, 6))
def test_no_small_island_is_left_and_nothing_else_is_touched(label, least):
    out = drop_islands(torch.from_numpy(label), least).numpy()
    want = label.copy()
    for m in want:
        for c in (1, 2, 3):
            pieces, n = ndimage.label(m == c, np.ones((3, 3)))
            for k in range(1, n + 1):
                if (pieces == k).sum() < least: m[pieces == k] = 0
    assert np.array_equal(out, want)


def test_rescue_fills_empty_images_only():
    prob = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))*0.4
    prob[2] *= 0.1
    label = torch.zeros(4, 5, 5, dtype=torch.uint8)
    label[1, 0, 0] = 3
    out = rescue(label, prob, 0.2)
    assert torch.equal(out[1], label[1]) and not out[2].any() and out[0].any() and out[3].any()
    assert set(out[0].unique().tolist()) <= {0, int(prob[0].amax((1, 2)).argmax()) + 1}


# ---- is it there at all?

def ratio(keep, p, d, prior=0.5): return ((keep*p*d).sum() + prior)/(p.sum() + (keep*(1 - p)).sum() + 1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0.02, 0.98), st.floats(0.02, 1)), min_size=1, max_size=9))
def test_no_other_choice_of_structures_has_a_higher_expected_score(cells):
    "Dinkelbach's turns against all subsets. The slice that holds the estimate scores as all together, so it is taken from the answer."
    p, d = np.array(cells).T
    usual = float(P.usual_dice(p[:, None], d[:, None], np.ones((len(p), 1), bool))[0])
    pooled = usual*(p.sum() + ((1 - p)*(keep := p*d > (1 - p)*usual)).sum() + 1) - (keep*p*d).sum()
    best = max(ratio(np.array(bits), p, d, pooled) for bits in itertools.product([False, True], repeat=len(p)))
    assert ratio(keep, p, d, pooled) == pytest.approx(usual) == pytest.approx(best, abs=1e-9)


def test_a_structure_is_kept_if_its_odds_exceed_usual_over_stake():
    prob = torch.zeros(2, 2, 4, 4)
    prob[0, 0, :2] = 0.8; prob[0, 1, 3, :2] = 0.6; prob[1, 0, 0, 0] = 0.8
    label = decide(prob, Rule(), "sigmoid")
    e = P.ExpectedDice(bias=0.5, peak=1.0, area=0.3, usual=(0.7, 0.2))
    odds = lambda peak, pixels: np.exp(0.5 + np.log(peak/(1 - peak)) + 0.3*np.log(pixels/16))
    for n, c, peak, pixels in [(0, 0, .8, 8), (0, 1, .6, 2), (1, 0, .8, 1)]:
        stake = 2*pixels*peak/(pixels + pixels*peak)
        for usual in (0.98*odds(peak, pixels)*stake, 1.02*odds(peak, pixels)*stake):
            e = replace(e, usual=tuple(usual if k == c else 0.0 for k in (0, 1)))
            out = decide(prob, Rule(expected=e), "sigmoid")
            assert torch.equal(out[n] == c + 1, (label[n] == c + 1) & bool(usual < odds(peak, pixels)*stake))
            assert torch.equal(out == 2 - c, label == 2 - c)  # the other class stays


def test_what_is_kept_does_not_depend_on_the_size_of_the_image():
    prob = torch.rand(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))**6
    e = P.ExpectedDice(1.0, 1.0, 1.5, (0.3, 0.5, 0.7, 0.9))
    big = prob.repeat_interleave(3, 2).repeat_interleave(3, 3)
    small, large = (decide(x, Rule(expected=e), "sigmoid") for x in (prob, big))
    assert torch.equal(large, small.repeat_interleave(3, 1).repeat_interleave(3, 2)) and not torch.equal(small, decide(prob, Rule(), "sigmoid"))


def cells(n=4000, seed=0):
    "Drawn structures whose chance to be there is known: logit = 1 + 2·(logit of the peak) + 0.5·ln(share)."
    rng = np.random.default_rng(seed)
    found = np.stack([rng.normal(1, 1, (n, 2)), rng.normal(-4, 1, (n, 2)), rng.random((n, 2))])
    chance = 1/(1 + np.exp(-(1 + 2*found[0] + .5*found[1])))
    return found, rng.random((n, 2)) < chance, np.ones((n, 2), bool)


def test_the_chance_of_being_there_is_learnt_from_what_was_looked_for():
    found, present, known = cells()
    e = P.fit_expected_dice(found, present, known)
    assert (e.bias, e.peak, e.area) == pytest.approx((1, 2, .5), abs=0.2) and 0 < min(e.usual) <= max(e.usual) < 1
    half = known.copy(); half[::2] = False
    spoilt, wrong = found.copy(), present.copy()
    spoilt[:, ::2], wrong[::2] = 9, ~present[::2]
    assert P.fit_expected_dice(spoilt, wrong, half) == P.fit_expected_dice(found[:, 1::2], present[1::2], known[1::2])
    not_drawn = found.copy(); not_drawn[1, ::2] = -np.inf
    assert P.fit_expected_dice(not_drawn, wrong, known) == P.fit_expected_dice(found[:, 1::2], present[1::2], known[1::2])
    for certain in (present & False, present | True): assert P.fit_expected_dice(found, certain, known) is None
    assert P.fit_expected_dice(found, present, known & False) is None


def test_inventions_are_dropped_though_they_peak_as_high():
    slices = toy(24, labelled=24, every=True)
    prob = truth_as_probability(slices)
    absent = torch.from_numpy(~slices.present)[:, :, None, None]
    stain = torch.zeros_like(prob); stain[:, :, 3, 5:7] = 0.9  # two pixels in another place
    rule, scores = P.choose_rule(Script(slices, prob + (prob == 0)*absent*stain), slices)
    assert rule.expected and rule.expected.area > 0 and scores[rule] > scores[Rule()] + 0.2
    gate, by_gate = P.choose_rule(Script(slices, prob + (prob == 0)*absent*stain), slices, expected=False)
    assert gate.expected is None and max(v for r, v in by_gate.items() if not r.island) < scores[rule] - 0.1  # no gate can tell them apart


def test_a_rule_outlives_its_file(tmp_path):
    e = P.ExpectedDice(0.1, 1.2, -0.3, (0.25, 0.5, 0.75))
    run = fake_run(tmp_path/"a", toy(), rule=asdict(Rule(0.4, expected=e)))
    p = load_predictor(run.folder, CPU)
    assert p.rule == Rule(0.4, expected=e) and str(p.rule) == "threshold 0.4, expected Dice"
    assert prepare(run.folder, CPU, threshold=0.6).rule == Rule(0.6, expected=e) and prepare(run.folder, CPU, rule="argmax").rule == Rule()
    assert load_predictor(fake_run(tmp_path/"old", toy(), rule={"threshold": None, "gate": 0.5}).folder, CPU).rule == Rule(gate=0.5)


class Script:
    "A predictor for `choose_rule` whose probabilities are given."
    activation = "sigmoid"
    def __init__(self, slices, prob): self.at = {i.tobytes(): p for i, p in zip(slices.images, prob)}
    def probabilities(self, images): return torch.stack([self.at[i.tobytes()] for i in images])


def truth_as_probability(slices, sure=0.9):
    return torch.stack([torch.from_numpy((slices.masks == c)*sure) for c in (1, 2, 3)], 1).float()


def test_what_does_not_help_stays_off():
    slices = toy(24, labelled=24, every=True)
    rule, scores = P.choose_rule(Script(slices, truth_as_probability(slices)), slices)
    assert rule == Rule() and scores[rule] == 1


def test_islands_and_rescue_are_switched_on_where_they_help():
    slices = toy(24, labelled=24, every=True)
    salted = truth_as_probability(slices)
    salted[:, 2, ::16, ::16] = 0.95  # single pixels of the bar everywhere: no threshold or gate can tell them from bars
    rule, scores = P.choose_rule(Script(slices, salted), slices)
    assert rule.island >= 2 and scores[rule] > scores[Rule()] + 0.1
    timid = truth_as_probability(slices, sure=0.25)  # nothing reaches any threshold of the grid
    rule, scores = P.choose_rule(Script(slices, timid), slices)
    assert rule.rescue and scores[rule] > 0.3 > scores[Rule()] + 0.2


# ---- views

@pytest.mark.parametrize("axis", ["vertical", "horizontal"])
def test_a_mirrored_view_swaps_left_and_right_back(axis):
    prob = torch.rand(2, 3, 10, 12, generator=torch.Generator().manual_seed(0))
    flip = {"vertical": -2, "horizontal": -1}[axis]
    back, seen = View(mirror=axis).undo(prob, LR)
    assert seen == 1 and torch.equal(back[:, 0], prob[:, 1].flip(flip)) and torch.equal(back[:, 2], prob[:, 2].flip(flip))


def test_views_of_a_network_that_does_not_care_change_little():
    y, x = np.mgrid[:48, :40]
    blob = (255*np.exp(-((y - 20)**2 + (x - 22)**2)/90)).astype(np.uint8)[None]
    p = fixed(lambda x: x.repeat(1, 3, 1, 1), mirror="horizontal")
    assert (replace(p, views=18).probabilities(blob) - p.probabilities(blob)).abs().max() < 0.35  # the average of blobs on both sides
    p = fixed(lambda x: x.repeat(1, 3, 1, 1))
    assert (replace(p, views=9).probabilities(blob) - p.probabilities(blob)).abs().max() < 0.06


def test_only_what_every_run_has_learnt_is_mirrored(tmp_path):
    a, b = fake_run(tmp_path/"a", toy(), mirror="horizontal"), fake_run(tmp_path/"b", toy(), seed=1)
    assert load_predictor(a.folder, CPU).mirror == "horizontal"
    assert load_predictor([a.folder, b.folder], CPU).mirror is None
    assert sum(v.mirror is not None for v in tta_views(6, "vertical")) == 3
    load_predictor(a.folder, CPU, views=18)
    with pytest.raises(InputError, match="expected 1 to 9"): load_predictor([a.folder, b.folder], CPU, views=10)


# ---- ensembles

def test_runs_of_other_classes_cannot_be_averaged(tmp_path):
    a = fake_run(tmp_path/"a", toy())
    b = fake_run(tmp_path/"b", replace(toy(), classes=ClassMap.from_names(["disc_right", "disc_left", "bar"])))  # the same names in another order
    with pytest.raises(InputError, match="b: knows other classes than .*a; runs of different classes"): load_predictor([a.folder, b.folder], CPU)


def test_no_network_is_asked_about_a_slice_it_was_trained_on(tmp_path):
    slices = toy(32, labelled=24)
    runs = [fake_run(tmp_path/str(i), slices, seed, fold=fold) for i, (seed, fold) in enumerate([(0, 0), (1, 0), (0, 1), (0, 3)])]
    p = load_predictor([r.folder for r in runs], CPU)
    seen = []
    for i, m in enumerate(p.members):
        m.model.register_forward_hook(lambda model, args, out, i=i: seen.extend((i, x.mul(255).round().byte().numpy().tobytes()) for x in args[0]))
    parts = out_of_fold(p, slices)
    assert sorted(n for _, s in parts for n in s.names) == sorted(set(n for _, s in parts for n in s.names))
    P.choose_rule(p, parts)
    for i, run in enumerate(runs):
        job = Job(Recipe(**read_json(run/"recipe.json")["recipe"]), slices, run, CPU, read_json(run/"recipe.json")["seed"])
        asked, learnt = {x for k, x in seen if k == i}, {x.tobytes() for x in job.labelled.images}
        assert asked and not asked & learnt
        assert asked == {x.tobytes() for x in job.holdout.images}


def test_a_run_that_held_nothing_out_or_saw_other_data(tmp_path):
    slices = toy()
    none = load_predictor(fake_run(tmp_path/"none", slices, fold=-1).folder, CPU)
    with pytest.raises(InputError, match="held out no slices"): out_of_fold(none, slices)
    with pytest.raises(InputError, match="trained on other data"): out_of_fold(none, slices[:20])


# ---- the store

def test_stored_probabilities(tmp_path):
    rng = np.random.default_rng(0)
    prob = rng.random((3, 3, 6, 5), np.float32)*(rng.random((3, 3, 6, 5)) < 0.3)
    prob[:, 1] = 0.0004  # below half a step: not worth a class
    with P.write_probabilities(tmp_path/"p.zip", LR, "sigmoid", (6, 5)) as add:
        for i in (2, 0, 1): add(f"{i}.png", prob[i])
    with StoredProbabilities(tmp_path/"p.zip") as s:
        assert (s.names, len(s), s.size, s.activation, s.classes) == (["2.png", "0.png", "1.png"], 3, (6, 5), "sigmoid", LR)
        assert all(np.abs(s[f"{i}.png"] - prob[i]).max() <= 1/2048 for i in range(3)) and s.images["0.png"] == [1, 3]
    with np.load(tmp_path/"p.zip") as plain: assert plain["0.png"].dtype == np.float16 and plain["0.png"].shape == (2, 6, 5)


@pytest.mark.parametrize("damage", ["missing", "text", "cut", "no index"])
def test_a_damaged_store_is_told(tmp_path, damage):
    path = tmp_path/"p.zip"
    with P.write_probabilities(path, LR, "sigmoid", (6, 5)) as add: add("0.png", np.ones((3, 6, 5), np.float32))
    if damage == "missing": path.unlink()
    if damage == "text": path.write_text("no")
    if damage == "cut": path.write_bytes(path.read_bytes()[:-40])
    if damage == "no index":
        with zipfile.ZipFile(path, "w") as z: z.writestr("a", "b")
    with pytest.raises(InputError, match="no such file" if damage == "missing" else "not a file of probabilities"): StoredProbabilities(path)


def test_a_store_that_fails_half_way_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with P.write_probabilities(tmp_path/"p.zip", LR, "sigmoid", (6, 5)) as add:
            add("0.png", np.ones((3, 6, 5), np.float32))
            raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


# ---- the submission

def write_pngs(folder, images):
    folder.mkdir()
    for i, image in enumerate(images): imsave(folder/f"{i}.png", image, check_contrast=False)
    return folder


def bright(x): return torch.cat([(x > t).float() for t in (0.5, 0.7, 0.9)], 1)*torch.tensor([0.6, 0.7, 0.8])[:, None, None]


def test_a_folder_of_any_size_takes_the_same_memory(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (390, 96, 96), np.uint8)

    class Forgetful(Fixed):
        def forward(self, x): return self.f(x)
    p = Predictor([Member(m := Forgetful(bright), m)], LR, CPU)

    def peak(n):
        folder = write_pngs(tmp_path/f"i{n}", images[:n])
        tracemalloc.start()
        predict_folder(p, folder, tmp_path/f"{n}.csv", tmp_path/f"{n}.zip", batch_size=8)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top
    few, many = peak(130), peak(390)
    assert many - few < 0.25*260*96*96, f"{few} bytes for 130 images, {many} for 390: their masks alone are {260*96*96} bytes more"
    names, masks = read_masks(tmp_path/"390.csv", cache=False)
    assert names == [f"{i}.png" for i in range(390)] and np.array_equal(masks, predict_masks(p, images))


def test_the_file_is_what_pandas_would_write(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (12, 7, 9), np.uint8)
    facts = predict_folder(fixed(bright), write_pngs(tmp_path/"images", images), tmp_path/"s.csv", batch_size=5)
    flat = predict_masks(fixed(bright), images).reshape(12, -1)
    want = pd.DataFrame(flat.T, index=[f"Pixel {k}" for k in range(63)], columns=[f"{i}.png" for i in range(12)]).to_csv()
    assert (tmp_path/"s.csv").read_text() == want and facts["images"] == 12 and facts["rule"] == "argmax"
    assert {p.name for p in tmp_path.iterdir()} == {"images", "s.csv"}


@pytest.mark.parametrize("edit", [lambda t: t.replace("Pixel 3,", "Pixel 4,"), lambda t: t[:-30], lambda t: t.replace(",1", ",2", 1), lambda t: t.replace("0.png,1.png", "1.png,0.png")])
def test_a_submission_that_was_written_wrongly_never_gets_its_name(tmp_path, monkeypatch, edit):
    real = P.write_masks
    def wrong(masks, names, path):
        real(masks, names, path)
        path.write_text(edit(path.read_text()))
    monkeypatch.setattr(P, "write_masks", wrong)
    masks = np.arange(32, dtype=np.uint8).reshape(2, 4, 4) % 3
    with pytest.raises(InputError): P.write_submission(masks, ["0.png", "1.png"], tmp_path/"s.csv")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fails_on_the_way_leaves_nothing(tmp_path, monkeypatch):
    folder = write_pngs(tmp_path/"images", np.zeros((6, 8, 8), np.uint8))
    calls = []
    def fails(self, images):
        calls.append(1)
        if len(calls) == 2: raise OSError(28, "No space left on device")
        return torch.zeros(len(images), 3, 8, 8)
    monkeypatch.setattr(Predictor, "probabilities", fails)
    with pytest.raises(InputError, match="disk is full"): predict_folder(fixed(bright), folder, tmp_path/"s.csv", tmp_path/"p.zip", batch_size=3)
    assert {p.name for p in tmp_path.iterdir()} == {"images"}


def test_room_for_the_labels_is_taken_before_they_are_mapped(tmp_path, monkeypatch):
    "A mapped file on a disk that gets full is a bus error, which nobody can catch."
    import os
    folder = write_pngs(tmp_path/"images", np.zeros((3, 8, 8), np.uint8))
    def full(*_): raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(InputError, match="disk is full"): predict_folder(fixed(bright), folder, tmp_path/"s.csv")
    assert {p.name for p in tmp_path.iterdir()} == {"images"}
    def cannot(*_): raise OSError(95, "Operation not supported")  # not every file system can
    monkeypatch.setattr(os, "posix_fallocate", cannot)
    assert predict_folder(fixed(bright), folder, tmp_path/"s.csv")["images"] == 3


def test_islands_are_a_share_of_the_area(tmp_path):
    "A rule chosen on 8x8 pixels means four times as many pixels at 16x16."
    image = np.zeros((1, 16, 16), np.uint8)
    image[0, 2:5, 2:5] = 255  # nine pixels
    p = replace(fixed(bright), rule=Rule(island=4), rule_size=(8, 8))
    assert not predict_masks(p, image).any() and predict_masks(replace(p, rule_size=(16, 16)), image).any() and predict_masks(replace(p, rule_size=None), image).any()
    assert predict_folder(p, write_pngs(tmp_path/"images", image), tmp_path/"s.csv")["rule"] == "argmax, island 16"
    assert load_predictor(fake_run(tmp_path/"run", toy()).folder, CPU).rule_size == (32, 32)


# ---- precision

def test_runs_predict_in_the_precision_they_were_trained_in(tmp_path, monkeypatch):
    runs = {}
    for precision in ("auto", "fp32", "fp16", "bf16"):
        run = runs[precision] = fake_run(tmp_path/precision, toy())
        spec = read_json(run/"recipe.json")
        write_json(spec | {"recipe": spec["recipe"] | {"precision": precision}}, run/"recipe.json")
    used = lambda *which, plan="cpu": load_predictor([runs[k].folder for k in which], plan).plan.precision
    assert [used(k) for k in runs] == ["fp32", "fp32", "fp32", "bf16"]  # a CPU has no float16
    assert used("bf16", "fp32") == "fp32" and used("bf16", "auto") == "bf16" and used("bf16", plan=CPU) == "fp32"
    assert prepare(runs["bf16"].folder, "cpu").plan.precision == "bf16"
    asked = []
    monkeypatch.setattr(P, "pick_device", lambda *a: asked.append(a) or CPU)
    load_predictor(runs["fp32"].folder)
    assert asked == [("auto", "fp32")]


def test_probabilities_that_are_no_numbers_are_no_empty_submission(tmp_path):
    runs = [fake_run(tmp_path/name, toy(), seed) for seed, name in enumerate("ab")]
    model = load_predictor(runs[1].folder, CPU).members[0].model
    next(model.parameters()).data.fill_(torch.nan)
    save_weights(model, runs[1].weights)
    images = write_pngs(tmp_path/"images", toy().images[:2])
    code, _, err = ctseg("predict", *(r.folder for r in runs), "--images", images, "--out", tmp_path/"s.csv", "--device", "cpu")
    assert code == 2 and err.startswith(f"ctseg: {runs[1].folder}: the probabilities are not finite (in fp32)") and len(err.splitlines()) == 1 and not (tmp_path/"s.csv").exists()
    code, _, err = ctseg("predict", runs[1].folder, "--images", images, "--out", tmp_path/"s.csv", "--device", "cpu", "--precision", "bf16")
    assert code == 2 and "(in bf16)" in err and "--precision fp32" in err


# ---- calibration

def test_unknown_cells_say_nothing():
    g = torch.Generator().manual_seed(0)
    logits, mask = torch.randn(6, 3, 1, 400, generator=g)*3, torch.randint(0, 2, (6, 1, 400), generator=g)
    known = torch.tensor([[True, True, False]]*6)
    loud = logits.clone()
    loud[:, 2][mask == 0] = 40.  # the unexamined class, at pixels of which nobody said anything
    assert fit_temperature(logits, mask, known, "sigmoid") == fit_temperature(loud, mask, known, "sigmoid")
    assert known_nll(logits, mask, known, "sigmoid") != known_nll(loud, mask, known | True, "sigmoid")


def test_reliability_is_its_definition():
    rng = np.random.default_rng(0)
    p, hit = torch.from_numpy(rng.random(5000)).float(), torch.from_numpy(rng.random(5000) < 0.4)
    points, ece = reliability(p, hit, 10)
    want = 0
    for b in range(10):
        m = (p*10).long().clamp(max=9) == b
        want += m.float().mean()*abs(p[m].mean() - hit[m].float().mean())
    assert abs(ece - want) < 1e-5 and len(points) == 10 and sum(k for *_, k in points) == 5000


def test_a_run_keeps_its_temperature_and_uses_it_when_asked(tmp_path):
    slices = toy(32, labelled=24)
    run = fake_run(tmp_path/"run", slices, rule={"threshold": 0.5, "gate": 0.0})
    with pytest.raises(InputError, match="not calibrated"): prepare(run.folder, CPU, calibrated=True)
    held = slices[P.held_out_by(run, slices)]
    found = calibrate_run(run, held, CPU)
    metrics = read_json(run/"metrics.json")
    assert metrics["calibration"] == found and metrics["rule"] == {"threshold": 0.5, "gate": 0.0}
    p = prepare(run.folder, CPU, calibrated=True)
    assert p.members[0].temperature == found["temperature"] and asdict(p.rule) == found["rule"]
    assert prepare(run.folder, CPU).members[0].temperature == 1
    assert list(pd.read_csv(run/"reliability.csv").columns) == ["when", "said", "was", "pairs"]
    with pytest.raises(InputError, match="at least two"): calibrate(p.members[0], held[[0]], CPU)


# ---- the command

@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "A challenge folder and two runs of it."
    base, slices = tmp_path_factory.mktemp("world"), toy(32, labelled=24)
    write_challenge(slices, base/"data")
    write_challenge(replace(toy(10, labelled=10, seed=5, every=True)), base/"data", "test")
    from ctseg.data import read_challenge
    train = read_challenge(base/"data")
    fake_run(base/"a", train), fake_run(base/"b", train, fold=1), fake_run(base/"none", train, fold=-1)
    fake_run(base/"other", replace(train, classes=ClassMap.from_names(["x", "y", "z"])))
    imsave(write_pngs(base/"mixed", train.images[:3])/"3.png", np.zeros((8, 8), np.uint8), check_contrast=False)
    return base


def test_the_command_with_everything(world, tmp_path):
    code, out, err = ctseg("predict", world/"a", world/"b", "--images", world/"data"/"test-images", "--out", tmp_path/"s.csv.gz", "--tta", 3, "--tune", world/"data",
                           "--probabilities", tmp_path/"p.zip", "--threshold", 0.2, "--batch-size", 4, "--device", "cpu")
    assert code == 0 and "images: 10" in out and "models: 2" in out and "views: 3" in out and "threshold 0.2" in out, err
    code, out, err = ctseg("check", world/"data", "--submission", tmp_path/"s.csv.gz")
    assert code == 0, err
    with StoredProbabilities(tmp_path/"p.zip") as s:
        names, masks = read_masks(tmp_path/"s.csv.gz", cache=False)
        again = decide(torch.stack([torch.from_numpy(s[n]) for n in names]), Rule(0.2), s.activation).numpy()
        assert s.names == names and (again != masks).mean() < 0.01


@pytest.mark.parametrize("args, says", [
    (["{w}/a", "{w}/other"], "knows other classes"), (["{w}/a", "--tta", "0"], "expected 1 to 9"), (["{w}/a", "--tta", "99"], "expected 1 to 9"),
    (["{w}/a", "--threshold", "2"], "--threshold 2: expected a probability"), (["{w}/a", "--gate=-0.1"], "--gate -0.1: expected a probability"),
    (["{w}/a", "--calibrated"], "not calibrated"), (["{w}/none", "--tune", "{w}/data"], "held out no slices"), (["{w}/a", "--tune", "{w}/mixed"], "train-images"),
    (["{w}/a", "--images", "{w}/mixed"], "8x8 pixels, expected 32x32"), (["{w}/a", "--out", "{new}.txt"], "something.csv"), (["{w}"], "no run here"),
    (["{w}/a", "--probabilities", "{w}/data/class_names.json/p"], "a part of the path is a file"),
])
def test_a_mistake_is_one_line_and_leaves_nothing(world, tmp_path, args, says):
    given = [a.replace("{w}", str(world)).replace("{new}", str(tmp_path/"s")) for a in args]
    for option, value in (("--images", world/"data"/"test-images"), ("--out", tmp_path/"s.csv")):
        if option not in given: given += [option, value]
    code, out, err = ctseg("predict", *given, "--device", "cpu")
    assert code == 2 and says in err and len(err.strip().splitlines()) == 1, err
    assert not list(tmp_path.iterdir())


def test_argmax_can_be_had_and_tuning_says_what_it_found(world, tmp_path):
    run = fake_run(tmp_path/"tuned", toy(), rule={"threshold": 0.4, "gate": 0.6})
    args = ["predict", "--images", world/"data"/"test-images", "--out", tmp_path/"s.csv", "--device", "cpu"]
    rules = [ctseg(*args, run.folder, *more)[1].split("rule: ")[1].splitlines()[0] for more in ([], ["--rule", "argmax"], ["--rule", "argmax", "--gate", "0.5"])]
    assert rules == ["threshold 0.4, gate 0.6", "argmax", "argmax, gate 0.5"]
    _, out, _ = ctseg(*args, world/"a", "--tune", world/"data")
    assert "Dice out of fold, argmax: 0." in out and "Dice out of fold, this rule: 0." in out
    assert "out of fold" not in ctseg(*args, world/"a", "--tune", world/"data", "--gate", "0.9")[1]  # that is another rule than was scored
    for more, says in ((["--rule", "agmax"], "did you mean argmax"), (["--rule", "argmax", "--tune", world/"data"], "one of the two")):
        code, _, err = ctseg(*args, run.folder, *more)
        assert code == 2 and says in err and len(err.splitlines()) == 1


def test_what_cannot_be_written_is_told_before_the_work(world, tmp_path, monkeypatch):
    (tmp_path/"s.csv").mkdir()
    monkeypatch.setattr("ctseg.calibrate.prepare", lambda *a, **k: pytest.fail("the work has begun"))
    for more in (["--out", tmp_path/"s.csv"], ["--out", tmp_path/"t.csv", "--probabilities", tmp_path/"s.csv"]):
        code, _, err = ctseg("predict", world/"a", "--images", world/"data"/"test-images", *more)
        assert code == 2 and err == f"ctseg: cannot write {tmp_path/'s.csv'}: it is a folder\n"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()])
def test_a_lack_of_memory_is_one_line(world, tmp_path, monkeypatch, error):
    def fails(self, images): raise error
    monkeypatch.setattr(Predictor, "probabilities", fails)
    for args in (["predict", world/"a", "--images", world/"data"/"test-images", "--out", tmp_path/"s.csv"],
                 ["report", world/"a", "--data", world/"data", "--out", tmp_path/"r.html", "--batch-size", 2], ["report", world/"a", world/"a", "--data", world/"data", "--out", tmp_path/"r.html"]):
        code, _, err = ctseg(*args, "--device", "cpu")
        assert code == 2 and err.endswith("ctseg: out of memory; take a smaller --batch-size, or --device cpu\n") and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_any_other_runtime_error_is_not_hidden(world, tmp_path, monkeypatch):
    def fails(self, images): raise RuntimeError("a defect")
    monkeypatch.setattr(Predictor, "probabilities", fails)
    with pytest.raises(RuntimeError, match="a defect"):
        from ctseg.cli import app
        app(["predict", str(world/"a"), "--images", str(world/"data"/"test-images"), "--out", str(tmp_path/"s.csv")], standalone_mode=False)


def test_the_names_of_the_classes_are_found_from_inside_the_folder(world, tmp_path, monkeypatch):
    write_challenge(replace(toy(4, labelled=4, every=True), classes=ClassMap.from_names(["x", "y", "z"])), tmp_path/"other", "test")
    monkeypatch.chdir(tmp_path/"other"/"test-images")
    code, _, err = ctseg("predict", world/"a", "--images", ".", "--out", tmp_path/"s.csv", "--device", "cpu")
    assert code == 2 and "other classes than the run's" in err and not (tmp_path/"s.csv").exists()


# ---- the benchmark

def test_the_benchmark_of_ensembles_scores_what_the_command_would_write(world, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(P.Path(__file__).resolve().parent.parent/"tools"))
    import bench
    from ctseg.data import read_challenge
    from ctseg.metrics import dice_table
    monkeypatch.setattr(bench, "RESULTS", tmp_path/"results")
    train, test = read_challenge(world/"data"), read_challenge(world/"data", "test")
    for k in (0, 1): fake_run(tmp_path/"runs"/"t"/f"log-f{k}-s0", train, rule={"threshold": 0.009, "gate": 0.0}, fold=k)
    with np.load(bench.ensembles("t", "log", [0], world/"data", tmp_path/"runs")) as z:
        both = load_predictor(sorted((tmp_path/"runs"/"t").iterdir()), pick_device("cpu", "bf16"))
        want = dice_table(predict_masks(both, test.images, [Rule()])[0], test.masks, 3)
        assert z["dice_single"].shape == z["dice_single-rule"].shape == (2, 10, 3) and {f"dice_{s}" for s in bench.STEPS} <= set(z.files)
        np.testing.assert_array_equal(z["dice_ensemble"], want.astype(np.float32))
    with pytest.raises(SystemExit): bench.ensembles("t", "nothing", [0], world/"data", tmp_path/"runs")


def test_calibration_takes_fewer_pixels_where_slices_and_classes_are_many():
    from ctseg.calibrate import sample_logits
    from ctseg.losses import create_loss
    member, slices = Member(nn.Conv2d(1, 4, 1), create_loss("marginal")), toy()
    sizes = [sample_logits(member, slices, CPU, most=most)[0].shape[-1] for most in (2**27, 24*4*100, 1)]
    assert sizes == [1024, 100, 64]  # all of 32x32; as many as fit; never fewer than 64
