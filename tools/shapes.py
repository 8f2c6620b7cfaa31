"""Would a gate on the shape of what a network draws help? `python tools/shapes.py RUN --data DIR`

For each class, the mean and covariance of area, place and extent over the outlines that the run learnt from
(`labelled=100` and the run's seed). A structure of a prediction that lies farther from it than a quantile of the chi
square distribution is taken away. `nbs/benchmarks/results/tried_shapes.csv` keeps the Dice by quantile: of the annotated
slices of other patients that the run left out, and of the test slices.
"""
import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from bench_slices import left_out
from results import RESULTS
from scipy.stats import chi2

from ctseg.core.device import pick_device
from ctseg.data.challenge import read_challenge
from ctseg.data.slices import SliceSet
from ctseg.data.splits import select_labelled
from ctseg.inference.rule import Rule
from ctseg.metrics.challenge import examined_dice, mean_dice
from ctseg.prediction.predictor import load_predictor, predict_masks
from ctseg.prediction.saved import run_spec
from ctseg.runs.folder import Run

FEATURES = 5
LEAST = 6  # outlines of a class, or its structures are never taken away
QUANTILES = (0.9, 0.99, 0.999, 0.9999)


def features(structure: np.ndarray) -> list[float]:
    "Logarithm of the area, place of the centre, and logarithms of height and width, of a bool `[H, W]`."
    y, x = np.nonzero(structure)
    height, width = structure.shape
    extents = [np.log(np.ptp(side) + 1) for side in (y, x)]
    return [np.log(len(y)), y.mean()/height, x.mean()/width, *extents]


def shape_model(slices: SliceSet) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    "Of each class with enough outlines: the mean of the features, and the inverse of their covariance."
    model = {}
    for value in range(1, len(slices.classes) + 1):
        drawn = [mask == value for mask in slices.masks]
        table = np.array([features(structure) for structure in drawn if structure.any()])
        if len(table) < LEAST:
            continue
        covariance = np.cov(table.T)
        shrunk = 0.8*covariance + 0.2*np.diag(np.diag(covariance)) + 1e-4*np.eye(FEATURES)
        model[value] = table.mean(0), np.linalg.inv(shrunk)
    return model


def distances(masks: np.ndarray, model: dict, classes: int) -> np.ndarray:
    "The squared Mahalanobis distance of each structure, f64 `[N, C]`; 0 where there is none or no model."
    found = np.zeros((len(masks), classes))
    for row, mask in enumerate(masks):
        for value, (mean, inverse) in model.items():
            structure = mask == value
            if structure.any():
                away = features(structure) - mean
                found[row, value - 1] = away@inverse@away
    return found


def gated(masks: np.ndarray, distance: np.ndarray, limit: float) -> np.ndarray:
    "The masks without the structures that are farther away than `limit`."
    kept = np.concatenate([np.ones((len(masks), 1), bool), distance <= limit], 1)
    return np.where(np.take_along_axis(kept, masks.reshape(len(masks), -1), 1).reshape(masks.shape), masks, 0)


def main():
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True,
                        help="a challenge folder whose test slices have truth")
    options = parser.parse_args()
    train, test = read_challenge(options.data), read_challenge(options.data, "test")
    spec = run_spec(Run(options.run))
    labelled, seed = spec["recipe"].value("labelled"), spec["seed"]
    learnt_from = select_labelled(train, labelled, seed).labelled
    others = left_out(train, labelled, seed)
    predictor = load_predictor(options.run, pick_device("auto", "fp32"))
    model = shape_model(train[np.flatnonzero(learnt_from)])
    rows = []
    for name, slices in (("left out", train[others]), ("test", test)):
        masks, = predict_masks(predictor, slices.images, [Rule()])
        distance = distances(masks, model, len(slices.classes))
        for quantile in (1, *QUANTILES):
            limit = chi2.ppf(quantile, FEATURES)
            dice = mean_dice(examined_dice(gated(masks, distance, limit), slices))
            rows.append({"slices": name, "quantile": quantile, "Dice": dice})
    found = pd.DataFrame(rows)
    found.to_csv(RESULTS/"tried_shapes.csv", index=False, float_format="%.4f")
    print(found.to_string(index=False))


if __name__ == "__main__": main()
