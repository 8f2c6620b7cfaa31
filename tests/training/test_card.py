"""What happens on a GPU, on machines without one: float16, loss scaling, and that nothing is left behind on
the CPU. Each check runs in a process with a pretended card (card.py)."""
import fcntl
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ctseg.data.challenge import read_challenge
from ctseg.prediction.predictor import load_predictor, predict_masks
from ctseg.recipes.fit import fit
from ctseg.recipes.table import get_recipe
from ctseg.runs.recipe import apply_settings
from helpers.runs import cut
from helpers.toys import SMALL_NETWORKS as SMALL, ZOO

HAS_ZOO = all(map(importlib.util.find_spec, ("segmentation_models_pytorch", "dynamic_network_architectures")))
TESTS = Path(__file__).resolve().parent.parent
HELPERS = TESTS/"helpers"
TINY = [
    "model=tiny-for-tests",
    "width=4",
    "image_size=32",
    "folds=3",
    "batch_size=4",
    "epochs=2",
    "tune_rule=no",
]
RECIPES = {  # every method, and every way of it that draws or builds something of its own
    "ctseg": ("ctseg", ["second_phase=0.7", "unlabelled_passes=0"]),
    "unimatch, all of it": ("unimatch", ["views=2", "feature_dropout=0.5", "rebalance=yes"]),
    "the original": ("original-teacher-student", ["keep=2"]),
    "pretrain": ("original-pretrain-finetune", ["keep=2", "finetune_epochs=1"]),
    "mean-teacher": ("mean-teacher", []),
    "mean-teacher, noise": ("mean-teacher", ["perturb=noise"]),
    "self-training": ("self-training", ["teachers=2", "finetune_epochs=1"]),
    "presence": ("masked", ["presence=0.5", "rare_power=0.5"]),
}


@pytest.fixture(scope="module")
def card(request):
    """Call a function of card.py on a card of some capability; the library is built once for this version
    of torch."""
    if torch.version.cuda or not sys.platform.startswith("linux"):
        pytest.skip("needs a torch for Linux without CUDA")
    if not (compiler := shutil.which("g++")): pytest.skip("needs g++")
    source, folder, torch_ = (
        HELPERS/"card.cpp",
        Path(request.config.cache.mkdir("card")),
        Path(torch.__file__).parent,
    )
    library = folder/f"{hashlib.sha256(source.read_bytes() + torch.__version__.encode()).hexdigest()[:16]}.so"
    with open(folder/"lock", "w") as lock:  # other workers wait for the first
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            args = [
                "-shared",
                "-fPIC",
                "-std=c++20",
                "-O1",
                "-w",
                f"-I{torch_}/include",
                f"-I{torch_}/include/torch/csrc/api/include",
                source,
                "-o",
                folder/"new.so",
                f"-L{torch_}/lib",
                "-lc10",
                "-ltorch_cpu",
            ]
            done = subprocess.run([compiler, *map(str, args)], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-3000:]
            (folder/"new.so").replace(library)

    def call(capability, function, *args):
        done = subprocess.run(
            [sys.executable, str(HELPERS/"card.py"), str(library), capability, function, *map(str, args)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, "\n".join(
            x for x in done.stderr.splitlines() if "registered at" not in x
        )[-3000:]
        return json.loads(done.stdout)
    return call

def test_the_card_refuses_what_a_card_refuses(card):
    "Else the other tests would show nothing."
    told = card("7.5", "refusals")
    for mistake in ("sum", "cat", "put", "where", "convolution", "scatter"):
        assert "on the same device" in told[mistake], mistake
    assert "indexed tensor" in told["index by the card"] and "Use Tensor.cpu()" in told["numpy"]
    assert (
        "'cuda' device type for generator" in told["generator of the host"]
        and "'cpu' device type for generator" in told["generator of the card"]
    )
    assert (
        told["values"] == [[0, 0, 0], [3, 0, 0]]
        and told["legal"] == ["cuda", "cuda", "cpu"]
        and told["drawn alike"]
    )
    assert told["autocast"] == "torch.float16" and told["gradient"] == ["cuda", "torch.float32"]

def losses(history): return [row["loss"] for row in history]

def test_every_recipe_learns_on_a_card_what_it_learns_without(card, tmp_path, phantom):
    """In float32 the same losses, but for the order of sums; masks, pseudo-labels, averages and draws are
    those of the CPU."""
    jobs = {name: (recipe, [*TINY, "precision=fp32", *more]) for name, (recipe, more) in RECIPES.items()}
    told = card("7.5", "fits", phantom, tmp_path/"card", json.dumps(jobs))
    slices = read_challenge(phantom)
    for name, (recipe, settings) in jobs.items():
        run = fit(
            slices,
            apply_settings(get_recipe(recipe), settings),
            tmp_path/"cpu"/name,
            device="cpu",
            progress=False,
        )
        here = run.read_history()
        there = told[name]["history"]
        assert [(r["phase"], r["epoch"], r["step"]) for r in there] == list(
            zip(here.phase, here.epoch, here.step)
        ), name
        np.testing.assert_allclose(losses(there), here.loss, rtol=2e-3, err_msg=name)
        # its weights, brought home
        on_cpu = predict_masks(load_predictor(tmp_path/"card"/name, "cpu", views=2), slices.images)
        assert np.mean(on_cpu.ravel() == told[name]["labels"]) > 0.999, name

def test_half_precision(card, tmp_path, phantom):
    """float16 below 8.0, bfloat16 from there on: both learn nearly what float32 learns. Where the scale of
    the loss is too high to begin with, steps are left out and nothing else goes wrong."""
    same_batch = ["batch_size=8", "augment=none"]  # of all slices, as they are: only the scale changes
    jobs = json.dumps(
        {
            "tiny": ("ctseg", [*TINY, "epochs=12", "second_phase=0.5", "unlabelled_passes=0", "lr=0.05"]),
            "large": ("marginal-log", [*TINY, *same_batch, "model=attunet", "epochs=6"]),
        }
    )
    half, brain = (
        card(capability, "fits", phantom, tmp_path/capability, jobs) for capability in ("7.5", "8.0")
    )
    assert (
        half["tiny"]["where"] == ["cuda:0 (pretended card), fp16"]
        and half["tiny"]["precision"] == "fp16"
        and brain["tiny"]["precision"] == "bf16"
    )
    plain = fit(
        phantom,
        apply_settings(get_recipe("ctseg"), json.loads(jobs)["tiny"][1]),
        tmp_path/"cpu",
        device="cpu",
        progress=False,
    ).read_history()
    for told in half, brain:
        np.testing.assert_allclose(losses(told["tiny"]["history"]), plain.loss, rtol=.025)
    assert plain.loss[11] < .93*plain.loss[0]
    skipped = [r["skipped"] for r in half["large"]["history"]]
    assert (
        skipped == sorted(skipped, reverse=True)
        and 0 < sum(skipped) < len(skipped)
        and not any(r["skipped"] for r in brain["large"]["history"])
    )
    # one step an epoch: nothing was learnt in it
    assert [r["loss"] is None for r in half["large"]["history"]] == [s == 1 for s in skipped]

def test_a_step_waits_for_the_card_seldom(card, tmp_path, phantom):
    """To look at the labels of each loss, and for its loss and the norm of its gradient in one piece.

    Whatever else it asked of the card would keep the processor from preparing what comes next.
    """
    jobs = {
        name: (recipe, [*TINY, "precision=fp32", *more])
        for name, (recipe, more) in RECIPES.items()
        if name in ("ctseg", "mean-teacher", "self-training")
    }
    told = card("7.5", "waits", phantom, tmp_path, json.dumps(jobs))
    assert {"supervised", "unimatch", "mean-teacher", "student", "finetune"} <= told.keys()
    for phase, (times, lines) in told.items():
        assert times == (3 if phase == "unimatch" else 2), (phase, lines)

def test_the_programme_for_a_gpu(card, tmp_path, phantom):
    "All its parts, kept as they were measured."
    facts = card("7.5", "programme", phantom, tmp_path)
    assert facts["ceiling"]["precision"] == "fp16" and facts["ceiling"]["matmul"] > 0
    assert len(facts["steps"]) == 9 and all(r["ms"] > 0 and 0 < r["share"] for r in facts["steps"])
    assert [r["recipe"] for r in facts["hours"]] == ["ctseg-1h", "ctseg", "ctseg-30h"]
    assert {(r["recipe"], r["seed"]) for r in facts["runs"]} == {("marginal-log", 0), ("ctseg", 0)}
    assert json.loads((tmp_path/"gpu.json").read_text()) == facts

def test_a_run_moves_between_card_and_cpu(card, tmp_path, phantom):
    "Cut on a card with float16, continued on the CPU, which has no loss scaler; and the other way round."
    settings = [*TINY, "epochs=3"]
    for first, then in (("card", "cpu"), ("cpu", "card")):
        out = tmp_path/f"{first}-{then}"
        for where, after in ((first, 2), (then, 0)):
            if where == "card":
                epochs, finished = card("7.5", "cut_on_card", phantom, out, json.dumps(settings), after)
            else: epochs, finished = cut(phantom, out, settings, after, "cpu")
            assert (epochs, finished) == (([1, 2], False) if after else ([1, 2, 3], True)), (first, then)

def test_networks_in_float16(card):
    "Logits near those of float32, and a finite gradient for all that takes part."
    names = [n for n in SMALL if not n.startswith(ZOO) or HAS_ZOO]
    for name, told in card("7.5", "networks", ",".join(names)).items():
        assert told["device"] == "cuda" and told["off"] < 0.03, name
        # nnU-Net's coarse heads answer in training only
        assert [n for n in told["lost"] if "seg_layers" not in n] == [], name
