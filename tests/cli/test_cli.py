"The command line as a user meets it: the whole job, and one clear line with exit status 2 for every mistake."
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest

from ctseg.core.errors import InputError
from ctseg.data.challenge import read_challenge
from ctseg.recipes.table import RECIPES, get_recipe

from helpers.command import ctseg

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = str(ROOT/"data_sample")
SIZE = [x for s in ("width=4", "image_size=32", "fold=-1") for x in ("--set", s)]
TINY = [*SIZE, "--set", "epochs=1"]


def test_the_installed_command():
    "Once as a process: the module's entry, the exit status, no traceback."
    p = subprocess.run(
        [sys.executable, "-m", "ctseg", "check", "no-such-folder"], capture_output=True, text=True, cwd=ROOT
    )
    assert (
        p.returncode == 2 and p.stderr.startswith("ctseg: no-such-folder") and len(p.stderr.splitlines()) == 1
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")/"a"
    code, _, err = ctseg("fit", SAMPLE, "--out", out, *TINY)
    assert code == 0 and re.search(r"^training on (cpu|cuda:0) \(.+\), \w+: \w+$", err, re.M), err
    return out


def test_fit_predict_check_evaluate(run, tmp_path):
    sub = tmp_path/"submission.csv"
    code, out, err = ctseg("predict", run, "--images", f"{SAMPLE}/test-images", "--out", sub)
    assert code == 0 and "images: 60" in out, err
    code, out, err = ctseg("check", SAMPLE, "--submission", sub)
    assert code == 0 and out.endswith("ok\n"), err
    code, out, err = ctseg("evaluate", f"{SAMPLE}/y_test.csv.gz", sub, "--json", tmp_path/"m.json")
    assert code == 0 and "dice:" in out and (tmp_path/"m.json").exists(), err
    assert {"recipe.json", "history.csv", "metrics.json", "curves.png", "checkpoints"} <= {
        p.name for p in run.iterdir()
    }


def test_a_perfect_submission_scores_one(tmp_path):
    from ctseg.prediction.submission import write_submission
    test = read_challenge(SAMPLE, "test")
    write_submission(test.masks, test.names, tmp_path/"s.csv")
    code, out, _ = ctseg("evaluate", f"{SAMPLE}/y_test.csv.gz", tmp_path/"s.csv")
    assert (
        code == 0
        and "dice: 1.0000" in out
        and "\nsilent: none\n" in out
        and "\ninterval: 1.0000, 1.0000\n" in out
    )


def test_two_runs_are_averaged_as_probabilities_and_a_run_counts_once(run, tmp_path):
    from ctseg.prediction.predictor import load_predictor
    (tmp_path/"link").symlink_to(run)
    for again in (run, f"{run}/.", tmp_path/"link"):
        with pytest.raises(InputError, match="given twice"): load_predictor([run, again])
    copy = shutil.copytree(run, tmp_path/"copy")
    with pytest.warns(UserWarning, match="has the weights of .*: one is a copy"):
        one, two = load_predictor(run), load_predictor([run, copy])
    images = read_challenge(SAMPLE, "test").images[:1]
    assert np.allclose(one.probabilities(images), two.probabilities(images), atol=1e-6)


@pytest.mark.parametrize("args, says", [
    (["fit", SAMPLE, "--out", "{new}", "--recipe", "seed-atunet"], "did you mean original-attunet"),
    (["fit", SAMPLE, "--out", "{new}", "--set", "widht=16"], "did you mean width"),
    (["fit", SAMPLE, "--out", "{new}", "--set", "epochs=ten"], "epochs takes a whole number"),
    (["fit", SAMPLE, "--out", "{new}", "--set", "epochs=0"], "epochs = 0"),
    (["fit", SAMPLE, "--out", "{new}", "--set", "model=atunet", "--set", "fold=-1"], "did you mean attunet"),
    (["fit", SAMPLE, "--out", "{new}", "--set", "model=unet", "--set", "fold=-1"], "did you mean unet:resnet34 or"),
    (["fit", SAMPLE, "--out", "{new}", "--set", "frozen=yes", "--set", "fold=-1"], "unknown setting 'frozen': the model attunet has none of that name, only unet:resnet34"),
    (["fit", SAMPLE, "--out", "{new}", "--recipe", "marginal", "--set", "frozen=yes", "--set", "fold=-1"], "unknown setting 'frozen': the model attunet has none of that name, only unet:resnet34"),
    (["fit", SAMPLE, "--out", "{new}", "--set", "loss=maskd", "--set", "fold=-1"], "did you mean masked"),
    (["fit", SAMPLE, "--out", "{new}", "--set", "augment=mld", "--set", "fold=-1"], "did you mean mild"),
    (["fit", SAMPLE, "--out", "{new}", "--set", "folds=99", "--set", "fold=98"], "folds, numbered from 0 (-1 holds out none)"),
    (["fit", SAMPLE, "--out", "{new}", "--set", "labelled=999"], "999"),
    (["fit", SAMPLE, "--out", "{new}", "--set", "precision=fp16"], "fp16 needs a GPU"),
    (["fit", SAMPLE, "--out", "{new}", "--device", "cuda:x", *TINY], "unknown device 'cuda:x'"),
    (["fit", SAMPLE, "--out", "{new}", "--set", "labelled=1"], "10 folds of 1 group of slices: at least 2 folds, and a group (a patient, or near duplicates) for each; choose fewer folds, or fold = -1"),
    (["fit", SAMPLE, "--out", "{new}", "--set", "w_dice=nan"], "w_dice = nan"),
    (["fit", SAMPLE, "--out", "{new}", "--seed", "-1"], "seed = -1"),
    (["fit", SAMPLE, "--out", f"{SAMPLE}/class_names.json", *TINY], "class_names.json is no folder"),
    (["demo", "--out", f"{SAMPLE}/class_names.json", "--data", SAMPLE, "--overwrite"], "class_names.json holds no run"),
    (["fit", "no-such-folder", "--out", "{new}"], "no-such-folder"),
    (["fit", SAMPLE, "--out", "{run}", *TINY], "--resume"),
    (["fit", SAMPLE, "--out", "{run}", "--resume", *TINY, "--set", "lr=0.1"], "started with lr = 0.002"),
    (["predict", "no-such-run", "--images", f"{SAMPLE}/test-images", "--out", "{new}.csv"], "no run here"),
    (["predict", "{run}", "--images", "no-such-folder", "--out", "{new}"], "no-such-folder"),
    (["evaluate", "no.csv", "no.csv"], "no.csv"),
    (["check", "no-such-folder"], "no-such-folder"),
    (["import", "nifty", SAMPLE, "{new}"], "did you mean nifti"),
    (["import", "nifti", "no-such-folder", "{new}"], "no-such-folder"),
    (["export", "nifti", SAMPLE, "{new}"], "--masks"),
    (["export", "nnunet", SAMPLE, "{new}", "--unknown", "absent"], "there are: background, ignore, partial"),
    (["export", "nifti", SAMPLE, "{new}", "--masks", "x.csv", "--slices"], "--slices is not an option"),
    *[(["export", kind, SAMPLE, "{new}", *option], f"{option[0]} is not an option of `ctseg export {kind}`") for kind, option in (
        ("nnunet", ["--masks", "x.csv"]), ("nnunet", ["--split", "test"]), ("onnx", ["--unknown", "ignore"]),
        ("rle", ["--keep-patient"]), ("nifti", ["--source", SAMPLE]))],
    (["predict", "{run}", "--images", f"{SAMPLE}/test-images", "--out", "{new}.csv", "--annotated", "all"], "give that too"),
    (["report", "{run}", "--annotated", "all"], "--annotated needs --data"),
    (["import", "openkbp", SAMPLE, "{new}", "--gaps"], "--gaps is not an option of `ctseg import openkbp`"),
    (["import", "nifti", SAMPLE, "{new}", "--annotated", "al"], "did you mean all"),
    (["phantom", "{new}", "--seed", "-1"], "seed = -1"),
    *[([*command, *more], "does not end in a name") for command, more in (
        (["phantom", "{new}/.."], []), (["fit", SAMPLE, "--out", "{new}/.."], TINY))],
    (["export", "rle", SAMPLE, "{new}.csv", "--masks", "x.csv", "--classes", "x.json"], "give --like"),
    (["export", "rle", SAMPLE, "{new}.csv", "--masks", "x.csv", "--like", "x.csv", "--form", "wide"], "--form: --like"),
    (["evaluate", f"{SAMPLE}/class_names.json/foo", "no.csv"], "class_names.json/foo: cannot be read"),
    (["predict", "{run}", "--images", f"{SAMPLE}/test-images", "--out", "{new}.csv", "--probabilities", "{new}.csv"], "a file each"),
    (["predict", "{run}", "--images", f"{SAMPLE}/test-images", "--out", "{new}.csv", "--probabilities", "{new}.csv/x"], "a file each"),
    (["fit", SAMPLE, "--out", "{new}", "--set", "lr=0.1", "--set", "schedule.lr=0.2"], "given twice"),
    (["fit", SAMPLE, "--out", "{new}", "--recipe", ""], "--recipe is given an empty value"),
    (["check", ""], "data is given an empty value"),
    (["predict", "{run}", "", "--images", f"{SAMPLE}/test-images", "--out", "{new}.csv"], "runs is given an empty value"),
    (["fit", SAMPLE, "--out", "{new}", "--set", "lr=0.1", "--set=lr=0.2"], "lr is given twice"),
    (["fit", SAMPLE, "--out", "{new}", "--set", "model=attunet", "--set", "model=nnunet"], "model is given twice"),
    (["fit", SAMPLE, "--out", "{new}", "--set", "lr=0.1", "--set", "lr=0.1"], "lr=0.1 is given twice"),
    (["predict", "{run}", "{run}/", "--images", f"{SAMPLE}/test-images", "--out", "{new}.csv"], "given twice"),
    (["report", "{run}", f"{SAMPLE}", "{run}/."], "given twice"),
    (["fit", SAMPLE, "--out", "{new}" + "x"*300, *TINY], "name is too long"),
    (["fit", SAMPLE, "--out", "{new}", "--set", "seed=3"], "give --seed 3"),
    (["fit", SAMPLE, "--out", "{new}", "--set", "time_limit=1h"], "give --time-limit 1h"),
    (["fit", "no-such-folder", "--out", "{run}", *TINY], "already holds a run"),
    (["fit", SAMPLE, "--out", "{new}", "--recipe", "no-such/recipe.json"], "no-such/recipe.json: no such file"),
    (["fit", SAMPLE, "--out", "{new}", "--recipe", f"{SAMPLE}/class_names.json"], "not the recipe of a run"),
    (["demo", "--out", "{run}", "--data", SAMPLE, "--overwrite"], "holds a run that is no demo"),
    (["recipes", "maskd"], "did you mean masked"),
    (["ftt"], "no such command 'ftt'"),
    (["fit"], "missing argument 'data' (see `ctseg fit --help`)"),
    (["fit", SAMPLE, "--out", "{new}", "--sede", "3"], "no such option: --sede (Possible options: --seed, --set) (see"),
    (["fit", SAMPLE, "--out", "{new}", "--set", "lr=1e-3", "epochs=5", "tau=.9"], "(epochs=5 tau=.9); write --set epochs=5 --set tau=.9 (see"),
    (["fit", SAMPLE, "--out", "{new}", "epochs=5"], "(epochs=5); write --set epochs=5 (see"),
    (["fit", SAMPLE, "--out", "{new}", "--set", "lr", "1e-3"], "(1e-3); write --set lr=1e-3 (see"),
    (["fit", SAMPLE, "--out", "{new}", "--plugin", "a.py", "b.py", "c.py"], "write --plugin b.py --plugin c.py (see"),
    (["fit", SAMPLE, "more", "--out", "{new}"], "got unexpected extra argument(s) (more) (see `ctseg fit --help`)"),
    (["fit", SAMPLE, "--out", "{new}", "--epochs", "5"], "no such option: --epochs; give --set epochs=5 (see `ctseg fit --help`)"),
    (["fit", SAMPLE, "--out", "{new}", "--learning-rate", "0.1"], "no such option: --learning-rate; did you mean --set lr=0.1 or"),
    (["fit", SAMPLE, "--out", "{new}", "--gpus", "1"], "no such option: --gpus; did you mean --device? (see"),
    (["fit", SAMPLE, "--out", "{new}", "--batch-size=4"], "no such option: --batch-size; give --set batch_size=4 (see"),
    (["fit", SAMPLE, "--out", "{new}", "--frozen"], "no such option: --frozen; give --set frozen=VALUE (see"),
    (["predict", "{run}", "--images", SAMPLE, "--out", "{new}", "--epochs", "5"], "no such option: --epochs (see `ctseg predict --help`)"),
    (["fit", SAMPLE, "--out", "{new}", "--seed", "three"], "invalid value for '--seed'"),
    (["report", "{run}", "--slices", "0"], "invalid value for '--slices'"),
])
def test_a_mistake_is_one_line_and_status_2(run, tmp_path, args, says):
    new = tmp_path/"new"
    code, out, err = ctseg(*[a.replace("{new}", str(new)).replace("{run}", str(run)) for a in args])
    assert code == 2, err
    assert says in err and len(err.strip().splitlines()) == 1 and "Traceback" not in err
    assert not new.exists() and not list(tmp_path.iterdir())


@pytest.mark.parametrize("number, words", [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only")])
def test_a_disk_that_fails_is_told_and_nothing_is_left(tmp_path, monkeypatch, number, words):
    from ctseg.core import atomic
    from ctseg.prediction.submission import write_submission
    real = atomic.os.replace

    def fail(*a): raise OSError(number, "as if")
    monkeypatch.setattr(atomic.os, "replace", fail)
    with pytest.raises(InputError, match=words):
        write_submission(np.zeros((1, 4, 4), np.uint8), ["0.png"], tmp_path/"s.csv")
    monkeypatch.setattr(atomic.os, "replace", real)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error, "
                         "says", [(OSError(errno.EIO, "as if", "some/file"), "ctseg: some/file: as if"), (OSError("odd"), "ctseg: odd")])
def test_a_disk_error_that_nothing_nearer_tells(monkeypatch, error, says):
    from ctseg.data import sources
    def fail(*a, **kw): raise error
    monkeypatch.setattr(sources, "check_slices", fail)
    code, _, err = ctseg("check", SAMPLE)
    assert code == 2 and err.strip() == says


def test_the_lists_show_recipes_and_models():
    code, out, _ = ctseg("recipes")
    assert code == 0 and "(default)" in out and "original-teacher-student   the original method" in out
    assert "seed-" not in out and "\noriginal-pretrain-finetune " in out
    assert ctseg("recipes", "seed-attunet") == ctseg("recipes", "original-attunet")  # old names are aliases
    code, out, _ = ctseg("models", "attunet", "--plain")  # all of them, with measured steps, takes minutes
    assert code == 0 and "34,880,931" in out
    code, _, err = ctseg("models", "atunet")
    assert code == 2 and "attunet" in err
    code, out, _ = ctseg("doctor")
    assert code == 0 and "torch" in out


def openmp_of(args, cwd, **env):
    "OpenMP's variables after a command in a process of its own: number of threads, policy, spin count."
    code = (
        "import os, sys\n"
        "from ctseg.cli import app\n"
        "try: app(sys.argv[1:], standalone_mode=False)\n"
        "except BaseException: pass\n"
        "print('openmp', *(os.environ.get(k) for k in ('OMP_NUM_THREADS', 'OMP_WAIT_POLICY', "
        "'GOMP_SPINCOUNT')))"
    )
    clean = {
        k: v
        for k, v in os.environ.items()
        if k not in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    }
    p = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=clean | {"PYTHONPATH": str(ROOT)} | env,
    )
    return re.search(r"^openmp (.*)$", p.stdout, re.M)[1]


def test_threads_sleep_and_the_users_number_stays(tmp_path):
    assert openmp_of(["doctor"], tmp_path, OMP_NUM_THREADS="3") == "3 PASSIVE None"
    assert openmp_of(["predict"], tmp_path, OMP_NUM_THREADS="3", GOMP_SPINCOUNT="5") == "3 None 5"
    assert openmp_of(["check", "nowhere"], tmp_path) == "None None None"  # computes nothing


def test_a_resumed_run_keeps_its_threads(tmp_path):
    (tmp_path/"run").mkdir()
    (tmp_path/"run"/"recipe.json").write_text('{"threads": 5}')
    fit = ["fit", "nowhere", "--out", "run", "--resume"]
    assert openmp_of(fit, tmp_path) == "5 PASSIVE None"
    assert openmp_of(fit, tmp_path, OMP_NUM_THREADS="2") == "2 PASSIVE None"


def test_a_setting_that_the_method_has_not_is_refused(tmp_path):
    code, _, err = ctseg(
        "fit", SAMPLE, "--out", tmp_path/"a", "--recipe", "masked", *TINY, "--set", "tau=0.8"
    )
    assert (code, err) == (
        2,
        "ctseg: unknown setting 'tau': the method supervised has none of that name, only unimatch\n",
    )
    assert not (tmp_path/"a").exists()


def test_the_demo_needs_no_sample(monkeypatch, tmp_path):
    from ctseg import demo
    made = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "make_phantom", lambda out, **kw: made.append((out, kw)) or sys.exit(7))
    code, out, _ = ctseg("demo")
    assert code == 7 and made[0][0] == Path("runs/demo_data") and "no sample here" in out
    made[0][0].mkdir(parents=True)
    for name in ("y_train.csv", "y_test.csv"): (made[0][0]/name).touch()  # has been drawn
    code, _, _ = ctseg("demo")
    assert code != 7 and len(made) == 1


def test_fully_labelled_volumes_need_no_list(tmp_path, monkeypatch):
    "nnU-Net's folder as it is; the private key where it was asked for."
    import nibabel as nib
    monkeypatch.setenv("CTSEG_CACHE", str(tmp_path/"cache"))
    for kind, dtype in (("imagesTr", np.int16), ("labelsTr", np.uint8)):
        (tmp_path/"src"/kind).mkdir(parents=True)
        nib.save(
            nib.Nifti1Image(np.ones((6, 6, 3), dtype), np.eye(4)),
            tmp_path/"src"/kind/f"a{'_0000' if kind == 'imagesTr' else ''}.nii.gz",
        )
    (tmp_path/"classes.json").write_text('{"1": "liver", "2": "spleen"}')
    args = ["import", "nifti", tmp_path/"src", tmp_path/"out", "--classes", tmp_path/"classes.json"]
    code, _, err = ctseg(*args)
    assert code == 2 and "--annotated all" in err
    code, _, err = ctseg(*args, "--annotated", "all", "--key", tmp_path/"key.csv")
    assert code == 0 and read_challenge(tmp_path/"out").known.all(), err
    assert "a_0000.nii.gz" in (tmp_path/"key.csv").read_text()


def test_numbers_are_not_read_by_other_names(run, tmp_path):
    from ctseg.data.challenge import write_challenge
    from ctseg.core.anatomy import ClassMap
    from dataclasses import replace
    test = read_challenge(SAMPLE, "test")[:2]
    write_challenge(
        replace(test, classes=ClassMap.from_names([f"c{i}" for i in range(7)])), tmp_path/"other", "test"
    )
    code, _, err = ctseg(
        "predict", run, "--images", tmp_path/"other"/"test-images", "--out", tmp_path/"s.csv"
    )
    assert (
        code == 2
        and "other classes than the run's (1 is brainstem for the run and c0 for the folder)" in err
        and not (tmp_path/"s.csv").exists()
    )


def test_a_run_on_its_way_says_so(run, tmp_path):
    import shutil
    shutil.copytree(run, tmp_path/"r")
    for name in ("metrics.json", "checksums.json"): (tmp_path/"r"/name).unlink()
    p = subprocess.run(
        [
            sys.executable,
            "-m",
            "ctseg",
            "predict",
            tmp_path/"r",
            "--images",
            f"{SAMPLE}/test-images",
            "--out",
            tmp_path/"s.csv",
        ],
        capture_output=True,
        text=True,
    )
    assert (
        p.returncode == 0
        and len(p.stderr.splitlines()) == 1
        and p.stderr.startswith(f"ctseg: {tmp_path/'r'} is not finished")
    ), p.stderr


@pytest.mark.parametrize("place, says", [
    (None, "not the recipe of a run"),
    (("old_group",), "unknown group of settings 'old_group'"),
    (("schedule", "old_field"), "unknown setting of schedule 'old_field'"),
])
def test_a_recipe_of_another_version(run, tmp_path, place, says):
    shutil.copytree(run, tmp_path/"r")
    spec = json.loads((run/"recipe.json").read_text())
    if place:
        group = spec["recipe"]
        for key in place[:-1]: group = group[key]
        group[place[-1]] = 1
        says += "; "
    (tmp_path/"r"/"recipe.json").write_text(json.dumps(spec) if place else "[]")
    for args in (
        ["predict", tmp_path/"r", "--images", f"{SAMPLE}/test-images", "--out", tmp_path/"s.csv"],
        ["fit", SAMPLE, "--out", tmp_path/"r", "--resume", *TINY],
    ):
        code, _, err = ctseg(*args)
        assert code == 2 and says in err and len(err.strip().splitlines()) == 1
        assert not place or f"the run was made by ctseg {spec['versions']['ctseg']}" in err


def test_a_flat_recipe_with_a_field_that_no_version_had(run, tmp_path):
    spec = json.loads((run/"recipe.json").read_text())
    flat = {"name": "masked", "method": "supervised", "loss": "masked", "width": 4}
    (tmp_path/"flat.json").write_text(json.dumps(spec | {"recipe": flat}))
    code, out, err = ctseg("recipes", tmp_path/"flat.json")
    assert code == 0 and "\n  model.width = 4  (default: 0)" in out, err
    (tmp_path/"flat.json").write_text(json.dumps(spec | {"recipe": flat | {"old_field": 1}}))
    code, _, err = ctseg("recipes", tmp_path/"flat.json")
    assert code == 2 and "'old_field' is unknown to this ctseg" in err and len(err.strip().splitlines()) == 1


def test_help_and_version_are_no_mistakes():
    from importlib.metadata import version
    assert ctseg("--version") == (0, f"ctseg {version('ctseg')}\n", "")
    assert ctseg("--help")[0] == ctseg("fit", "--help")[0] == 0
    code, out, err = ctseg()
    assert "Commands:" in out + err and "Traceback" not in err


def test_the_fields_of_a_recipe(run):
    from ctseg.runs.recipe import recipe_fields
    _, out, _ = ctseg("recipes", "marginal-log")
    assert (
        "\n  loss.log_dice = True  (default: False)" in out
        and "−ln Dice instead of 1 − Dice" in out
        and "\n  schedule.epochs = 90 " in out
    )
    assert "tau" not in out  # of another method
    assert "\n  method.tau = 0.9" in ctseg("recipes", "unimatch")[1]
    _, out, _ = ctseg("recipes", run/"recipe.json")
    assert "\n  model.width = 4  (default: 0)" in out
    assert not [
        key for name in RECIPES for key, _, _, meaning in recipe_fields(get_recipe(name)) if not meaning
    ]


def test_the_recipe_of_a_run_can_be_used_again(run, tmp_path):
    code, _, err = ctseg("fit", SAMPLE, "--out", tmp_path/"again", "--recipe", run/"recipe.json", "--seed", 1)
    assert code == 0, err
    assert (
        json.loads((tmp_path/"again"/"recipe.json").read_text())["recipe"]
        == json.loads((run/"recipe.json").read_text())["recipe"]
    )
    spec = json.loads((run/"recipe.json").read_text())
    spec["recipe"]["schedule"]["epochs"] = "ten"
    (tmp_path/"odd.json").write_text(json.dumps(spec))
    code, _, err = ctseg("fit", SAMPLE, "--out", tmp_path/"new", "--recipe", tmp_path/"odd.json")
    assert code == 2 and "epochs = 'ten': expected a whole number" in err


@pytest.mark.parametrize("keep", ["0.5", "4"])
def test_the_recipe_of_a_run_that_keeps_a_share_or_a_count(keep, tmp_path):
    code, _, err = ctseg(
        "fit", SAMPLE, "--out", tmp_path/"a", *TINY, "--recipe", "teacher-student", "--set", f"keep={keep}"
    )
    assert code == 0, err
    spec = json.loads((tmp_path/"a"/"recipe.json").read_text())
    for value in (float(keep), *([int(keep)] if keep.isdigit() else [])):
        spec["recipe"]["method"]["keep"] = value
        (tmp_path/"kept.json").write_text(json.dumps(spec))
        assert get_recipe(str(tmp_path/"kept.json")).value("keep") == float(keep)


def test_defaults_are_of_the_type_they_declare():
    groups = [settings for recipe in RECIPES.values() for settings in recipe.groups().values()]
    odd = {
        f"{type(g).__name__}.{f.name}"
        for g in groups
        for f in fields(g)
        if type(f.default) is not get_type_hints(type(g))[f.name]
    }
    assert not odd


def test_a_stopped_run_has_its_status_and_a_new_one_says_so(tmp_path):
    code, _, err = ctseg(
        "fit",
        SAMPLE,
        "--out",
        tmp_path/"a",
        "--resume",
        "--time-limit",
        "0.001s",
        *SIZE,
        "--set",
        "epochs=50"
    )
    assert (
        code == 75
        and err.startswith(f"ctseg: no run in {tmp_path/'a'} yet: starting one\n")
        and "everything is saved" in err
    ), err
    code, _, err = ctseg(
        "fit",
        SAMPLE,
        "--out",
        tmp_path/"a",
        "--resume",
        "--time-limit",
        "0.001s",
        *SIZE,
        "--set",
        "epochs=50"
    )
    assert code == 75 and "starting one" not in err


def test_a_folder_that_holds_a_run_is_refused_before_anything_is_read(run, monkeypatch):
    monkeypatch.setattr("ctseg.recipes.fit.read_slices", lambda *a, **k: pytest.fail("the data is read"))
    code, _, err = ctseg("fit", SAMPLE, "--out", run, *TINY)
    assert code == 2 and "already holds a run; add --resume" in err


def test_slices_that_were_read_are_not_read_in_another_way(tmp_path):
    from ctseg.recipes.fit import fit
    slices = read_challenge(SAMPLE)
    with pytest.raises(InputError, match="give it to read_challenge"):
        fit(slices, out=tmp_path/"a", annotated="all")
    with pytest.raises(InputError, match="did you mean annotated"):
        fit(slices, out=tmp_path/"a", anotated="all")


@pytest.fixture
def deaf():
    "SIGTERM does nothing to this process but what the command does about it."
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    assert signal.signal(signal.SIGTERM, before).__name__ == "<lambda>", "the handler was not put back"


def test_sigterm_leaves_nothing_half_written(tmp_path, monkeypatch, deaf):
    from ctseg import phantom
    from ctseg.core.atomic import atomic_path
    def slow(out, *a, **k):
        with atomic_path(out) as tmp:
            tmp.mkdir()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
            (tmp/"late").touch()
    monkeypatch.setattr(phantom, "make_phantom", slow)
    code, out, err = ctseg("phantom", tmp_path/"new")
    assert (code, out, err) == (143, "", "") and not list(tmp_path.iterdir())


def test_sigterm_stops_a_training_with_everything_saved(tmp_path, monkeypatch, deaf):
    from ctseg.training import loop
    real = loop.end_epoch
    def once(session):
        real(session)
        os.kill(os.getpid(), signal.SIGTERM)
    monkeypatch.setattr(loop, "end_epoch", once)
    code, _, err = ctseg("fit", SAMPLE, "--out", tmp_path/"a", *SIZE, "--set", "epochs=50")
    assert code == 75 and "SIGTERM" in err and list((tmp_path/"a").glob("checkpoints/*/step-*"))


# ---- the demo

QUICK = ("width=4", "image_size=32", "epochs=1", "fold=-1", "keep=8")


def test_a_demo_replaces_a_demo_when_it_is_finished_and_no_training(tmp_path, monkeypatch, capsys):
    from ctseg import demo as module
    from ctseg.runs.folder import Run
    from ctseg.runs.start import hold_run, release_run
    monkeypatch.setattr(module, "draw_demo", lambda *a: None)  # most of the time
    demo = lambda **kw: module.run_demo(tmp_path/"demo", SAMPLE, settings=QUICK, progress=False, **kw)
    left = lambda: [p.name for p in tmp_path.iterdir()]
    demo()
    old = (tmp_path/"demo"/"submission.csv").stat().st_mtime_ns
    assert str(tmp_path/"demo"/"submission.csv") in capsys.readouterr().out and left() == ["demo"]
    with pytest.raises(InputError, match="add --overwrite"): demo()
    with monkeypatch.context() as m:
        m.setattr(module, "write_submission", lambda *a: (_ for _ in ()).throw(InputError("as if")))
        with pytest.raises(InputError, match="as if"): demo(overwrite=True)
    assert (tmp_path/"demo"/"submission.csv").stat().st_mtime_ns == old and left() == ["demo"]
    demo(overwrite=True)
    assert (tmp_path/"demo"/"submission.csv").stat().st_mtime_ns > old and left() == ["demo"]

    busy = Run(tmp_path/"demo")
    hold_run(busy)
    with pytest.raises(InputError, match="another process is training in it"): demo(overwrite=True)
    release_run(busy)
    path = tmp_path/"demo"/"recipe.json"
    spec = json.loads(path.read_text())
    spec["recipe"]["model"]["width"] = 48
    path.write_text(json.dumps(spec))
    (tmp_path/"demo"/"checksums.json").unlink()
    with pytest.raises(InputError, match="a run that is no demo"): demo(overwrite=True)
    assert (tmp_path/"demo"/"submission.csv").exists()


def test_a_finished_run_tells_its_rules_in_words(tmp_path):
    "Not the numbers of every class that stand behind them."
    out = tmp_path/"run"
    code, said, _ = ctseg(
        "fit",
        SAMPLE,
        "--out",
        str(out),
        "--recipe",
        "masked",
        *(x for s in ("epochs=1", "width=4", "image_size=32", "folds=4") for x in ("--set", s))
    )
    rules = [line.strip() for line in said.splitlines() if line.strip().startswith("rule:")]
    assert (
        code == 0
        and rules
        and all(r.startswith(("rule: argmax", "rule: threshold")) for r in rules)
        and "usual" not in said
    )


def test_facts_that_a_file_names_cannot_steer_the_terminal(capsys):
    from ctseg.cli.console import print_facts
    print_facts({"passed over": {"\x1b[31m": 1}, "a\nb": [{"\x07": "\x1b"}], "läsion": "größer"})
    lines = capsys.readouterr().out.splitlines()
    assert all(map(str.isprintable, lines)) and len(lines) == 5 and lines[-1] == "läsion: größer"
