"What tests read out of report pages, and what they put into run folders for them."
import json
import re

import numpy as np
import pandas as pd

SEES = {"threshold": 0.009, "gate": 0.0}  # below the prior of a fresh network: it draws something


def data_of(page: str) -> dict:
    "The slices that a page holds."
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def words_of(page: str) -> str:
    "What a reader sees or could look up, without packed pictures and drawings."
    page = re.sub(r'"(image|masks)":"[^"]*"', "", page)
    return re.sub(r"<svg.*?</svg>", "", page, flags=re.S)


def note_pseudo(run, slices, kept):
    "What a teacher leaves in the run folder about `slices`, of which those in `kept` (bool [N]) were kept."
    confidence = np.linspace(0.1, 0.9, len(slices))
    table = pd.DataFrame({"image": slices.names, "kept": kept.astype(int), "sdc": confidence})
    table.to_csv(run/"pseudo_labels.csv", index=False)
    labels = np.random.default_rng(0).integers(0, 4, slices.masks.shape, np.uint8)
    np.savez_compressed(run/"pseudo_labels.npz", names=np.array(slices.names), kept=kept, labels=labels)
    cells = {"class": "bar", "present": 7, "absent": 5, "present added": 3, "absent added": 2}
    pd.DataFrame([cells]).to_csv(run/"pseudo_cells.csv", index=False)
