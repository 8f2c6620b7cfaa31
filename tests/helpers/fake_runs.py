"Run folders that were never trained."
from dataclasses import asdict, replace

from ctseg.core.device import pick_device
from ctseg.core.json_files import write_json
from ctseg.inference.rule import Rule
from ctseg.runs.folder import Run, make_spec
from ctseg.runs.job import Job
from ctseg.runs.recipe import Recipe
from ctseg.runs.start import start_run
from ctseg.training.checkpoints import save_weights

CPU = pick_device("cpu")


def fake_run(folder, slices, seed=0, rule=None, **recipe) -> Run:
    """A run folder as `fit` leaves it, of a network that was never trained: quick, and as good as any to be
    loaded."""
    recipe = Recipe("fake").change(**dict(model="attunet", width=4, folds=4, loss="masked") | recipe)
    run = start_run(Run(folder), make_spec(recipe, slices, seed))
    save_weights(Job(recipe, slices, run, CPU, seed).networks.make(), run.weights)
    if rule: write_json({"rule": asdict(replace(Rule(), **rule))}, run/"metrics.json")
    return run
