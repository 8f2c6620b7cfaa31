"The trial of neighbouring slices keeps a table of scores for each training."
import json

import context
import numpy as np
import results

from ctseg.data.challenge import write_challenge

from helpers.toys import toy


def test_a_training_is_scored_and_kept_with_its_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path/"results")
    monkeypatch.setattr(context, "SETTINGS", context.SETTINGS | {"width": 4})
    write_challenge(toy(32, labelled=24), tmp_path/"data")
    write_challenge(toy(10, labelled=10, seed=5, every=True), tmp_path/"data", "test")
    context.measure(tmp_path/"data", tmp_path/"runs", epochs=1, context=0, seed=0)
    with np.load(tmp_path/"results"/"context"/"1-0-s0.npz") as z:
        facts = json.loads(str(z["facts"]))
        assert z["argmax"].shape == z["rule"].shape == (10, 3)
        assert facts["context"] == 0 and facts["epochs"] == 1 and facts["seconds"] >= 0
