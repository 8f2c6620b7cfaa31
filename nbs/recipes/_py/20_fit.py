# %% [markdown]
# # Fit
#
# > One call that carries out a recipe: phases, decision rule, calibration, and the files of the run.

# %%
#| default_exp recipes.fit

# %%
#| export
import math
import sys
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ctseg.core.device import pick_device
from ctseg.core.files import InputError, atomic_path, write_json
from ctseg.core.parallel import agree, main_first, on_main, rank, world
from ctseg.core.registry import load_plugin
from ctseg.data.challenge import read_challenge
from ctseg.data.slices import SliceSet
from ctseg.inference.rule import Rule
from ctseg.prediction.choose import choose_rule
from ctseg.prediction.predictor import load_predictor
from ctseg.prediction.prepare import calibrate_run
from ctseg.recipes.table import DEFAULT_RECIPE, get_recipe
from ctseg.runs.folder import Run, make_spec, start_run
from ctseg.runs.job import Job
from ctseg.runs.network import settled
from ctseg.runs.recipe import Recipe, recipe_plugins
from ctseg.training.curves import plot_curves
from ctseg.training.deadline import Deadline, Stopped, read_duration
from ctseg.training.learner import make_optimiser
from ctseg.training.setup import make_accelerator
from ctseg.training.step import out_of_memory

# %%
#| hide
import tempfile

from fastcore.test import test_eq

from ctseg.data.toys import toy_set


# %% [markdown]
# ## Before anything is trained
#
# What can be known to fail is told before the run folder exists. A slip of the pen then costs neither a teacher's training nor the folder's name.

# %%
#| export
def check_job(job: Job) -> str: # where a pretrained encoder's weights come from; "" without one
    "`InputError` for what would stop the run later: the network, the method's conditions, how batches divide."
    check_batches(job.recipe)
    model = job.make_model()
    make_optimiser(model, job.setup)
    compute = job.recipe.compute
    if compute.compile and not job.plan.can_compile:
        problem = f"{job.plan.name} is older than torch.compile supports (7.0)"
        raise InputError(f"compile = True: {problem}; leave it off")
    job.method.check(job)
    warn_of_split(job)
    return getattr(model, "weights_from", "")

def warn_of_split(job: Job) -> None:
    "Tell of unlabelled images that stay out, and of classes that nobody looked for."
    if job.split.kept_out and job.recipe.method.name != "supervised":
        patients = "held-out patients (or near-duplicates of their images)"
        problem = f"{job.split.kept_out} unlabelled images are of {patients} and stay out"
        warnings.warn(f"{problem}; --set fold=-1 holds out none")
    names = job.split.unexamined
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        which = ", ".join(names[:5]) + more
        warnings.warn(f"nobody looked for {which} on any slice to learn from: never drawn")


# %%
toy_job = Job(get_recipe("masked").change(width=4, folds=4), toy_set(16, 12)[0], Run("nowhere"), progress=False)
print(len(toy_job.labelled), "slices to learn from")
warn_of_split(toy_job)


# %%
#| export
def check_batches(recipe: Recipe) -> None:
    "`InputError` if batches cannot be divided among processes and pieces."
    size, pieces = recipe.schedule.batch_size, recipe.compute.pieces
    if size % world():
        raise InputError(f"batch_size = {size}: expected a multiple of the {world()} processes")
    if world()*pieces > size:
        processes = "1 process" if world() == 1 else f"{world()} processes"
        problem = f"a batch of {size} slices, of {processes}, cannot be cut into so many"
        raise InputError(f"pieces = {pieces}: {problem}")


# %%
try: check_batches(get_recipe("masked").change(batch_size=4, pieces=8))
except InputError as e: print(e)


# %% [markdown]
# ## After the last phase
#
# The decision rule is chosen, and the temperature fitted, on the held-out slices. `metrics.json` comes last: it is the sign that the run is finished.

# %%
#| export
def save_curves(run: Run) -> None:
    "Draw `curves.png` from the history."
    import matplotlib.pyplot as plt
    fig = plot_curves(run.read_history())
    with atomic_path(run/"curves.png") as tmp: fig.savefig(tmp, dpi=120)
    plt.close(fig)


# %%
from ctseg.runs.folder import write_rows
with tempfile.TemporaryDirectory() as d:
    rows = [dict(phase="supervised", epoch=e, loss=1/e, dice=1 - 1/e) for e in (1, 2, 3)]
    write_rows(rows, Path(d)/"history.csv")
    save_curves(Run(d))
    print(sorted(p.name for p in Path(d).iterdir()))


# %%
#| export
def finish(job: Job) -> None:
    "Choose the rule, calibrate, write `curves.png` and `metrics.json`; `Stopped` if the deadline comes first."
    facts: dict[str, Any] = {"phases": job.completed, "epochs": len(job.history)}
    facts["dice held out, argmax"] = job.history[-1]["dice"]
    rule, tune = Rule(gate=job.recipe.rule.least_peak), job.recipe.rule.tune_rule
    each = job.in_time("while the decision rule was chosen; all phases are trained", together=False)
    batch_size = min(16, max(1, job.schedule.batch_size//job.pieces))  # what training had room for
    if tune and len(job.holdout):
        predictor = load_predictor(job.run.folder, job.plan)
        rule, scores = choose_rule(predictor, job.holdout, each=each, batch_size=batch_size)
        facts["dice held out, argmax"] = scores[Rule()]  # both at the images' own size
        facts["dice held out, chosen rule"] = scores[rule]
    if len(np.unique(job.holdout.groups)) > 1:
        facts["calibration"] = calibrate_run(job.run, job.holdout, job.plan, tune, each, batch_size)
    save_curves(job.run)
    write_json(facts | {"rule": asdict(rule)}, job.run/"metrics.json")


# %%
print(finish.__doc__)


# %%
#| export
def finish_in_time(job: Job) -> str:
    "`finish`; the reason if the deadline came first."
    try: finish(job)
    except Stopped as e: return str(e)
    return ""

def carry_out(job: Job) -> None:
    "All phases, then the end of the run; `Stopped` in every process if one had to stop, `InputError` without memory."
    try:
        job.carry_out()
        stopped = on_main(lambda: finish_in_time(job))
    except RuntimeError as e:  # a step has its own remedy; this was the data, or a prediction
        if not out_of_memory(e): raise
        remedy = "choose a smaller image_size, batch_size or width"
        raise InputError(f"{job.plan.name}: out of memory; {remedy}") from e
    if agree(bool(stopped)): raise Stopped(stopped or "another process stopped")


# %% [markdown]
# ## The call
#
# `fit` may end in three ways: finished; stopped by a time limit or SIGTERM, with everything saved (`Stopped`); or killed. After the latter two `resume=True` carries on, to the same result. With [several processes](../core/60_parallel.ipynb) all call `fit`, and the first one writes.

# %%
#| export
@dataclass(frozen=True)
class FitOptions:
    "What is seldom given to `fit`."
    time_limit: str = ""                 # stop in time before so much has passed, e.g. "8h30m"; empty: never
    annotated: str = "json"              # of a challenge folder: what was examined, see `read_challenge`
    plugins: Iterable[str | Path] = ()   # files that register methods, losses, networks, augmentations

    def deadline(self) -> Deadline:
        "When to stop."
        return Deadline(read_duration(self.time_limit) if self.time_limit else math.inf)

    def read(self, data: SliceSet | str | Path) -> SliceSet:
        "The slices of a challenge folder; slices that have been read as they are."
        if not isinstance(data, SliceSet):
            return main_first(lambda: read_challenge(data, annotated=self.annotated))
        if self.annotated == "json": return data
        use = "is for reading a challenge folder, and these slices have been read"
        raise InputError(f"annotated={self.annotated!r} {use}; give it to read_challenge")


# %%
options = FitOptions(time_limit="8h30m", annotated="all")
print(options.deadline().why() or "there is time")
try: options.read(toy_set(4, 4)[0])
except InputError as e: print(e)


# %%
#| export
def announce(where: str, source: str) -> None:
    "Say on which device a run trains, and from which weights a pretrained encoder starts, if there is one."
    print(f"training on {where}", file=sys.stderr, flush=True)  # a forgotten GPU is better seen now
    if source:
        print(f"the encoder starts from {source}", file=sys.stderr, flush=True)


# %%
announce("cpu, fp32", "")


# %%
#| export
def fit(
    data: SliceSet | str | Path, # the slices, or a challenge folder
    recipe: Recipe | str = DEFAULT_RECIPE, # or its name, or the `recipe.json` of a run
    out: str | Path = "runs/run", # the run folder
    seed: int = 0,
    resume: bool = False, # continue a run that was cut
    device: str = "auto",
    progress: bool = True,
    **options, # see `FitOptions`: time_limit, annotated, plugins
) -> Run:
    "Train by a recipe; the finished run folder. Raises `InputError` for what the user must change, `Stopped` at the time limit."
    more = FitOptions(**options)
    given = [load_plugin(path) for path in more.plugins]
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    plugins = list(dict.fromkeys([*given, *recipe_plugins(recipe)]))
    plan, run = pick_device(device, recipe.compute.precision), Run(out)
    with more.deadline() as deadline:
        make_accelerator(plan)  # connects the processes, if there are several
        on_main(lambda: run.check_free(resume))
        slices = more.read(data)
        recipe, facts = main_first(lambda: settled(recipe, run, slices.images.shape[1:]))
        job = Job(recipe, slices, run, plan, seed, progress, deadline)
        source = check_job(job)
        try:
            spec = make_spec(recipe, slices, seed, plugins) | facts
            on_main(lambda: start_run(run, spec, resume))
            if run.finished: return run  # resumed after its end
            if progress and not rank():
                announce(job.where, source)
            carry_out(job)
        finally: run.unlock()
    return run


# %% [markdown]
# A small run on toys, start to finish:

# %%
small = get_recipe("marginal-log").change(width=8, epochs=25, folds=4, lr=5e-3, ema=0.9)
slices, truth = toy_set(40, 32)
with tempfile.TemporaryDirectory() as d:
    run = fit(slices, small, Path(d)/"first", device="cpu", progress=False)
    print(str(run).replace(d, "…"))
    print(sorted(str(p.relative_to(run.folder)) for p in run.folder.rglob("*") if p.is_file()))
    again = fit(slices, small, Path(d)/"first", device="cpu", progress=False, resume=True)  # finished: nothing is trained again
    test_eq(get_recipe(str(run/"recipe.json")), small)
    for other in [dict(recipe=small.change(lr=1e-4)), dict(recipe=small, seed=1)]:
        try: fit(slices, out=Path(d)/"first", device="cpu", progress=False, resume=True, **other)
        except InputError as e: print(str(e).replace(d, "…"))
