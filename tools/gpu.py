"""The whole programme on one GPU: `python tools/bench.py gpu --data DIR --out DIR [--minutes 15]`.

Four parts, each written to OUT/gpu.json as soon as it is measured, so that a lease that ends early loses
nothing; started again, it goes on where it was. `ceiling`: how fast the card multiplies matrices and copies.
`steps`: milliseconds of a training step of either phase of the recipe `ctseg` and of a prediction, peak memory,
and the share of that ceiling. `hours`: what the recipes take here on the challenge, and on a T4 (measured if
the card is one, otherwise estimated from the two ceilings, and said so). `runs`: `marginal-log` and `ctseg`
trained on DIR and scored on its test slices, for as many seeds as the minutes allow.
"""
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ctseg.core.device import DevicePlan, pick_device
from ctseg.core.json_files import write_json
from ctseg.data.augmentations import make_augment
from ctseg.data.challenge import read_challenge
from ctseg.losses.registry import make_loss
from ctseg.metrics.challenge import examined_dice, mean_dice
from ctseg.methods.unimatch import UniMatchStep
from ctseg.models import create_model
from ctseg.models.costs import PeakMemory, multiply_adds
from ctseg.phantom.challenge import phantom_slices
from ctseg.prediction.predictor import load_predictor, predict_masks
from ctseg.recipes.fit import fit
from ctseg.recipes.table import get_recipe
from ctseg.runs.recipe import apply_settings
from ctseg.training.loop import Trainer
from ctseg.training.method import Phase
from ctseg.training.setup import Setup

# Of the card's data sheet: TFLOP/s of float16 with tensor cores, GB/s of its memory. What a matrix product
# and a copy reach of these two on the card at hand is taken to be reached on a T4 as well.
T4 = {"matmul": 65., "copy": 320.}
LITE = "unet:tf_efficientnet_lite0"
NETWORKS = {  # name: (network, keywords)
    "attunet, width 32": ("attunet", {"width": 32}),
    "attunet, width 64": ("attunet", {"width": 64}),
    LITE: (LITE, {"light": True, "pretrained": False}),
}
RECIPES = {"ctseg-1h": "attunet, width 32", "ctseg": LITE, "ctseg-30h": "attunet, width 64"}
KINDS = {"fp16": torch.float16, "bf16": torch.bfloat16}
CHALLENGE = {"annotated": 800, "images": 2000}  # slices of 256 x 256
# Forward passes of a batch that a step multiplies as much as; backward counts for two. The second phase asks
# its teacher about annotated and other images, and learns from annotated ones and a strong view of both.
PASSES = {"prediction": 1, "supervised": 3, "unimatch": 2 + 3*3}


def synchronize(plan: DevicePlan) -> None:
    if plan.device.type == "cuda": torch.cuda.synchronize(plan.device)


def seconds(work, plan: DevicePlan, repeats: int = 10) -> float:
    "The median of a few calls, after two to warm up."
    taken = []
    for _ in range(repeats + 2):
        synchronize(plan)
        start = time.perf_counter()
        work()
        synchronize(plan)
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[2:]))


def ceiling(plan: DevicePlan, side: int) -> dict:
    "TFLOP/s of a square matrix product in the precision that networks run in; GB/s read and written by a copy."
    kind = KINDS.get(plan.precision, torch.float32)
    a = torch.rand(side, side, device=plan.device).to(kind)
    into = torch.empty_like(a)
    product = seconds(lambda: torch.mm(a, a, out=into), plan)
    copied = seconds(lambda: into.copy_(a), plan)
    return {
        "card": plan.name, "precision": plan.precision, "torch": torch.__version__,
        "matmul": 2*side**3/product/1e12, "copy": 2*a.nbytes/copied/1e9}


def network(name: str, classes: int):
    model, keywords = NETWORKS[name]
    return create_model(model, 1, classes + 1, **keywords)


def trainer(name: str, slices, plan: DevicePlan, batch: int, unlabelled) -> Trainer:
    "Of one phase of the recipe `ctseg`: the first, or with unlabelled slices the second."
    recipe = get_recipe("ctseg")
    schedule = replace(recipe.schedule, epochs=10**6, batch_size=batch)
    setup = Setup(schedule, augment=make_augment(recipe.augment, slices.classes), plan=plan, progress=False)
    if unlabelled is None:
        phase = Phase("supervised", slices)
    else:
        phase = Phase("unimatch", slices, method=UniMatchStep(recipe.method), extra=unlabelled)
    return Trainer(network(name, len(slices.classes)), make_loss(recipe.loss), phase, setup)


def one_step(name: str, slices, plan: DevicePlan, batch: int, unlabelled) -> dict:
    "Milliseconds of a step and peak memory."
    with PeakMemory(plan.device) as peak:
        at_work = trainer(name, slices, plan, batch, unlabelled)
        def step(): at_work.step(at_work.labelled.batches(at_work.progress.step)[0])
        taken = seconds(step, plan)
    return {"ms": 1000*taken, "peak_MB": peak.mb, "images": batch}


def one_prediction(name: str, slices, plan: DevicePlan, batch: int) -> dict:
    "Milliseconds of a batch's probabilities."
    model = network(name, len(slices.classes)).to(plan.device).eval()
    images = torch.from_numpy(slices.images[:batch, None]).to(plan.device).float()/255
    kind = KINDS.get(plan.precision, torch.float32)
    autocast = torch.autocast(plan.device.type, kind, enabled=kind != torch.float32)
    @torch.no_grad()
    def predict():
        with autocast: model(images).softmax(1)
    return {"ms": 1000*seconds(predict, plan), "images": batch}


def steps(plan: DevicePlan, top: float, size: int, batch: int) -> list[dict]:
    "What each network costs: a step of either phase, a prediction, and their share of the ceiling `top`."
    slices = phantom_slices(2*batch, size, seed=0)
    unlabelled = replace(slices, known=np.zeros_like(slices.known), masks=np.zeros_like(slices.masks))
    rows = []
    for name in NETWORKS:
        multiplied = 2*multiply_adds(network(name, len(slices.classes)), size)/1e12  # TFLOP of an image
        for what in ("supervised", "unimatch", "prediction"):
            if what == "prediction":
                found = one_prediction(name, slices, plan, batch)
            else:
                found = one_step(name, slices, plan, batch, unlabelled if what == "unimatch" else None)
            share = PASSES[what]*batch*multiplied/(found["ms"]/1000)/top
            rows.append({"network": name, "what": what, **found, "share": share})
    return rows


def slowdown(measured: dict) -> float:
    "How many times longer a T4 takes: by arithmetic or by memory, whichever is the larger ratio."
    if "T4" in measured["card"]: return 1.
    return max(measured["matmul"]/T4["matmul"], measured["copy"]/T4["copy"])


def hours(rows: list[dict], measured: dict) -> list[dict]:
    "Of the recipes on the challenge, each with the network that it takes there, from the measured steps."
    of = {(r["network"], r["what"]): r for r in rows}
    longer, found = slowdown(measured), []
    for name, net in RECIPES.items():
        recipe = get_recipe(name)
        in_a_phase = recipe.schedule.epochs*(CHALLENGE["annotated"]//of[net, "supervised"]["images"])
        second = getattr(recipe.method, "second_phase", 0)
        here = in_a_phase*(of[net, "supervised"]["ms"] + second*of[net, "unimatch"]["ms"])/3.6e6
        found.append({
            "recipe": name, "network": net, "hours here": here, "hours on a T4": here*longer,
            "T4": "measured" if longer == 1 else "estimated"})
    return found


def score(run: Path, test, plan: DevicePlan) -> float:
    "Mean Dice of a run on test slices with truth."
    masks = predict_masks(load_predictor(run, str(plan.device)), test.images)
    return mean_dice(examined_dice(masks, test))


def runs(data: Path, out: Path, plan: DevicePlan, settings: Sequence[str], until: float, done: list[dict],
         seeds: Sequence[int]) -> list[dict]:
    "Rows of recipe and seed, trained and scored, until the next would not be finished in time."
    train, test = read_challenge(data), read_challenge(data, "test")
    longest = 0.
    for seed in seeds:
        for name in ("marginal-log", "ctseg"):
            if any((r["recipe"], r["seed"]) == (name, seed) for r in done):
                continue
            start = time.monotonic()
            if start + longest > until: return done
            recipe = apply_settings(get_recipe(name), settings)
            where = out/f"{name}-s{seed}"
            run = fit(train, recipe, where, seed, resume=True, device=str(plan.device), progress=False)
            dice = score(run.folder, test, plan)
            longest = max(longest, time.monotonic() - start)
            taken = round(time.monotonic() - start)
            done.append({"recipe": name, "seed": seed, "Dice": dice, "seconds": taken})
            write_json(done, out/"runs.json")
    return done


@dataclass(frozen=True)
class Sizes:
    "How large the things are that are measured."
    image: int = 256   # pixels a side
    batch: int = 8     # images of a step
    matrix: int = 8192  # side of the matrices of the ceiling


def measure(
    data: Path | None,
    out: Path,
    minutes: float = 15,
    device: str = "auto",
    settings: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    sizes: Sizes = Sizes(),
) -> dict:
    "All parts that are not in OUT/gpu.json yet."
    until = time.monotonic() + 60*minutes
    plan = pick_device(device)
    out.mkdir(parents=True, exist_ok=True)
    kept = out/"gpu.json"
    facts = json.loads(kept.read_text()) if kept.exists() else {}
    def part(name, make):
        if name not in facts:
            facts[name] = make()
            write_json(facts, kept)
    part("ceiling", lambda: ceiling(plan, sizes.matrix))
    part("steps", lambda: steps(plan, facts["ceiling"]["matmul"], sizes.image, sizes.batch))
    part("hours", lambda: hours(facts["steps"], facts["ceiling"]))
    if data is not None:
        done = json.loads((out/"runs.json").read_text()) if (out/"runs.json").exists() else []
        facts["runs"] = runs(data, out, plan, settings, until, done, seeds)
        write_json(facts, kept)
    return facts
