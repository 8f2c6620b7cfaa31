"""Which slices to annotate next, measured: `python tools/suggesting.py --data DIR` (real CT of seven
organs, test with truth).

The annotated training slices are a pool whose annotation is hidden. Fifty slices drawn by the seed are
revealed, a network is trained on them, and in four rounds fifty more are chosen, revealed, and the
network trained on (`--init`): by `ctseg suggest`, by the mean entropy of the pixels, or at random.
`nbs/benchmarks/results/suggesting.csv` holds the Dice of each class on the test slices by patient after
each round, and `suggesting_chosen.csv` the images that were chosen. A row that is there is not measured
again.
"""
import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ctseg.data.challenge import read_challenge
from ctseg.data.slices import SliceSet
from ctseg.prediction.predictor import Predictor, load_predictor
from ctseg.prediction.suggest import suggest
from ctseg.recipes.fit import fit
from ctseg.recipes.table import get_recipe
from measured_by_patient import Results, dice_by_patient, mean_by_class

SETTINGS = dict(batch_size=8, ema=0.95, precision="bf16", fold=-1)
COUNT, ROUNDS = 50, 4
FIRST_STEPS, STEPS = 400, 150


def revealed(pool: SliceSet, shown: np.ndarray) -> SliceSet:
    "The pool with the annotation of some slices, bool [N]."
    masks = np.where(shown[:, None, None], pool.masks, 0).astype(np.uint8)
    return replace(pool, masks=masks, known=pool.known & shown[:, None])


def by_suggest(predictor: Predictor, pool: SliceSet, shown: np.ndarray, seed: int) -> np.ndarray:
    "Positions of the slices that `ctseg suggest` names, among those that are not annotated."
    found = suggest(predictor, revealed(pool, shown), COUNT, among=~shown)
    names = [found.slices.names[one.position] for one in found.chosen]
    return np.flatnonzero(np.isin(pool.names, names))


def by_entropy(predictor: Predictor, pool: SliceSet, shown: np.ndarray, seed: int) -> np.ndarray:
    "Positions of the slices with the highest mean entropy of their pixels."
    hidden = np.flatnonzero(~shown)
    entropy = []
    for rows in np.array_split(hidden, len(hidden)//COUNT):
        prob = predictor.probabilities(pool.images[rows]).float().cpu()
        background = (1 - prob.sum(1, keepdim=True)).clamp(min=0)
        entropy.append(torch.special.entr(torch.cat([background, prob], 1)).sum(1).mean((1, 2)))
    order = torch.argsort(torch.cat(entropy), descending=True, stable=True)
    return hidden[order[:COUNT].numpy()]


def by_chance(predictor: Predictor, pool: SliceSet, shown: np.ndarray, seed: int) -> np.ndarray:
    "Positions of slices drawn at random."
    hidden = np.flatnonzero(~shown)
    return np.random.default_rng([seed, int(shown.sum())]).choice(hidden, COUNT, replace=False)


STRATEGIES = {"random": by_chance, "entropy": by_entropy, "suggest": by_suggest}


def train(
    pool: SliceSet, shown: np.ndarray, out: Path, seed: int, steps: int, lr: float, width: int, init="",
):
    "A short training on the revealed slices, or the finished one in this folder."
    per_epoch = -(-int(shown.sum())//SETTINGS["batch_size"])
    recipe = get_recipe("marginal-log").change(width=width, epochs=round(steps/per_epoch), lr=lr, **SETTINGS)
    slices = revealed(pool, shown)[shown]
    return fit(slices, recipe, out, seed, resume=True, device="cpu", progress=False, init=init)


def facts_of(pool: SliceSet, i: int) -> dict:
    "What is kept of a chosen slice: its name, its patient, and the organs that are seen on it."
    organs = [name for name, seen in zip(pool.classes.names, pool.present[i]) if seen]
    return {"image": pool.names[i], "patient": int(pool.groups[i]), "organs": " ".join(organs)}


class Trial:
    "One strategy with one seed, round by round."
    def __init__(self, pool: SliceSet, test: SliceSet, runs: Path, width: int):
        self.pool, self.test, self.runs, self.width = pool, test, runs, width
        self.scores, self.choices = Results("suggesting.csv"), Results("suggesting_chosen.csv")

    def score(self, run, key: dict) -> Predictor:
        "Add the Dice on the test slices, unless it is there; the network."
        predictor = load_predictor(run.folder, "cpu")
        if not self.scores.has(key):
            rows = dice_by_patient(predictor.predict(self.test.images), self.test)
            self.scores.add(key, rows)
            own = mean_by_class(self.scores.of(key))
            print(key, round(own.mean(), 4), own.round(2).to_dict(), flush=True)
        return predictor

    def choose(self, strategy: str, predictor: Predictor, shown: np.ndarray, key: dict) -> np.ndarray:
        "`shown` with the slices that a strategy chooses, or has chosen before."
        if not self.choices.has(key):
            rows = STRATEGIES[strategy](predictor, self.pool, shown, key["seed"])
            self.choices.add(key, [facts_of(self.pool, i) for i in rows])
        return shown | np.isin(self.pool.names, self.choices.of(key).image)

    def run(self, strategy: str, seed: int) -> None:
        "All rounds; the first network is the same for every strategy."
        shown = np.zeros(len(self.pool), bool)
        shown[np.random.default_rng(seed).choice(len(self.pool), COUNT, replace=False)] = True
        run = train(self.pool, shown, self.runs/f"first-s{seed}", seed, FIRST_STEPS, 2e-3, self.width)
        predictor = self.score(run, {"strategy": "first", "seed": seed, "round": 0})
        for number in range(1, ROUNDS + 1):
            key = {"strategy": strategy, "seed": seed, "round": number}
            shown = self.choose(strategy, predictor, shown, key)
            out = self.runs/f"{strategy}-s{seed}-{number}"
            run = train(self.pool, shown, out, seed, STEPS, 2e-3, self.width, init=run.folder)
            predictor = self.score(run, key)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--runs", type=Path, default=Path("runs/suggesting"))
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=STRATEGIES)
    p.add_argument("--width", type=int, default=8)
    a = p.parse_args()
    train_slices = read_challenge(a.data)
    trial = Trial(train_slices[train_slices.labelled], read_challenge(a.data, "test"), a.runs, a.width)
    for seed in a.seeds:
        for strategy in a.strategies: trial.run(strategy, seed)


if __name__ == "__main__": main()
