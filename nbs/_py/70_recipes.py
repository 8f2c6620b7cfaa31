# %% [markdown]
# # Recipes
#
# > Named, frozen choices of method, model, loss, augmentation and schedule; and `fit`, which carries one out.
#
# - skip_showdoc: true

# %%
#| default_exp recipes

# %% [markdown]
# A recipe is a name for a set of choices. To use one is to say "what they did"; to change one field is to run an experiment. Not all of them have been measured as they stand. `ctseg-1h` and `ctseg-30h` have not, for want of a GPU. Of the last four, `teacher-student` and `mean-teacher` have been run once each on real CT; the methods of `unimatch` (two strong views and a feature stream) and `self-training` were measured with other losses, or in part.
#
# | recipe | what it is |
# |---|---|
# | `ctseg` | the default: `marginal-log`, then a phase with all images, in which a sure teacher completes the truth |
# | `ctseg-1h`, `ctseg-30h` | smaller and larger, for other budgets |
# | `seed-attunet` | the original project's baseline: Attention U-Net, Dice loss only, everything unexamined read as background |
# | `masked` | sigmoid outputs; only examined cells are taught |
# | `masked-log` | the same with the logarithm of the Dice |
# | `marginal` | softmax outputs; unexamined structures and background are one class as far as the truth can tell |
# | `marginal-log` | the same with the logarithm of the Dice; the supervised recipe to begin with, and the start of all the methods below but the original's |
# | `seed-teacher-student` | the original method: teacher → 800 surest slices → student with Dice + L2 |
# | `seed-pretrain-finetune` | its variant: pretrain on the pseudo-labelled, fine-tune on the annotated |
# | `teacher-student` | the original method with a loss that leaves unknown alone and a confidence that measures something |
# | `mean-teacher` | consistency with the averaged model wherever the truth is silent |
# | `unimatch` | completed truth for strong views, CutMix, feature dropout: the whole method, for a GPU |
# | `self-training` | out-of-fold teachers, cells accepted by confidence, noisy student, fine-tune |

# %%
#| export
import inspect, math, re, sys, warnings
from dataclasses import asdict, fields
from pathlib import Path
from typing import get_type_hints

import numpy as np

from ctseg.calibrate import calibrate_run
from ctseg.data import SliceSet, grouped_folds, read_challenge
from ctseg.device import pick_device
from ctseg.files import InputError, atomic_path, did_you_mean, write_json
from ctseg.methods.mean_teacher import PERTURB, mean_teacher
from ctseg.methods.self_training import self_training
from ctseg.methods.supervised import supervised
from ctseg.methods.teacher_student import pretrain_finetune, teacher_student
from ctseg.methods.unimatch import unimatch
from ctseg.models.encoders import param_groups
from ctseg.parallel import agree, main_first, on_main, rank, world
from ctseg.predict import choose_rule, load_predictor, Rule
from ctseg.pseudo import IMAGE_SCORES
from ctseg.train import BaseRecipe, Deadline, Job, Recipe, Run, Stopped, apply_settings, make_accelerator, out_of_memory, plot_curves, read_duration, read_spec, IN_WORDS

# %%
#| hide
import tempfile
from dataclasses import replace
import pandas as pd
from fastcore.test import test_eq

# %% [markdown]
# ## The table

# %%
#| export
METHODS = {"supervised": supervised, "teacher-student": teacher_student, "pretrain-finetune": pretrain_finetune, "mean-teacher": mean_teacher,
           "unimatch": unimatch, "self-training": self_training}

RECIPES = {r.name: r for r in [
    Recipe("ctseg", "supervised (`marginal-log`), then a phase half as long with all images, in which a sure teacher fills in what nobody examined (UniMatch)", "unimatch", loss="marginal", log_dice=True, second=0.5, views=1, feature_dropout=0),
    Recipe("ctseg-1h", "an hour of a T4 at most (estimated): `marginal-log` at half the width", loss="marginal", log_dice=True, width=32, epochs=300),
    Recipe("ctseg-30h", "thirty hours of a T4 at most (estimated): `ctseg`, four times as long, the second phase as long as the first", "unimatch", loss="marginal", log_dice=True, epochs=360, views=1, feature_dropout=0),
    Recipe("seed-attunet", "the original baseline: Dice loss only, zeros read as background, argmax", loss="dice", tune_rule=False),
    Recipe("masked", "supervised; sigmoid outputs, Dice and binary cross-entropy on known cells", loss="masked"),
    Recipe("masked-log", "supervised; `masked` with the logarithm of the Dice, so that a missed class keeps its gradient", log_dice=True),
    Recipe("marginal", "supervised; softmax outputs, marginal cross-entropy and Dice on known cells", loss="marginal"),
    Recipe("marginal-log", "supervised; `marginal` with the logarithm of the Dice; with the phantom's 54 structures the better one", loss="marginal", log_dice=True),
    Recipe("seed-teacher-student", "the original method: teacher, the 800 surest slices, student with Dice + L2", "teacher-student", loss="dice", confidence="max", tune_rule=False),
    Recipe("seed-pretrain-finetune", "the original's variant: pretrain on pseudo-labels, fine-tune on truth", "pretrain-finetune", loss="dice", confidence="max", tune_rule=False),
    Recipe("teacher-student", "the original method with our loss, which leaves the unknown of annotated slices unknown, and Soft Dice Confidence", "teacher-student", loss="marginal", log_dice=True),
    Recipe("mean-teacher", "consistency with the student's own average wherever the truth is silent", "mean-teacher", loss="marginal", log_dice=True, ramp=0.3),
    Recipe("unimatch", "a sure teacher completes the truth for two strong views", "unimatch", loss="marginal", log_dice=True),
    Recipe("self-training", "out-of-fold teachers complete slices cell by cell; a noisy student; a fine-tune", "self-training", loss="marginal", log_dice=True),
]}
DEFAULT_RECIPE = "ctseg"

def get_recipe(name: str) -> Recipe:
    "The recipe called `name`, or that of a run, by the path of its `recipe.json`; an unknown name shows the nearest ones."
    if str(name).endswith(".json"): return _recipe_of(Path(name))
    if name not in RECIPES: raise did_you_mean("recipe", name, RECIPES)
    return RECIPES[name]

def _recipe_of(path: Path) -> Recipe:
    given, kinds = read_spec(path)["recipe"], get_type_hints(Recipe)
    for k, v in given.items():
        if type(v) is not kinds[k] and (kinds[k], type(v)) != (float, int): raise InputError(f"{path}: {k} = {v!r}: expected {IN_WORDS[kinds[k]]}")
    return Recipe(**given)


# %% [markdown]
# What the fields mean stands beside them in the source of [`Recipe`](train.html), and is read from there, so that `ctseg recipes NAME` cannot tell anything else.

# %%
#| export
def recipe_fields(recipe: Recipe) -> list[tuple[str, object, object, str]]: # name, value, default, meaning
    "Every field of a recipe but its name and description."
    try: source = inspect.getsource(BaseRecipe) + inspect.getsource(Recipe)
    except OSError: source = ""  # an installation without sources
    meaning = dict(re.findall(r"^    (\w+): .*?  # (.*)$", source, re.M))
    return [(f.name, getattr(recipe, f.name), f.default, meaning.get(f.name, "")) for f in fields(recipe) if f.name not in ("name", "about")]


# %%
pd.set_option("display.max_colwidth", None)
pd.DataFrame([dict(name=r.name, method=r.method, loss=r.loss, about=r.about) for r in RECIPES.values()]).set_index("name")

# %%
changed = [f for f in recipe_fields(get_recipe("ctseg")) if f[1] != f[2]]
pd.DataFrame(changed, columns=["field", "value", "default", "meaning"]).set_index("field")


# %% [markdown]
# What each step of the default brings is measured with [few and with many annotated slices](benchmarks/realct_semi.html) and with [54 structures](benchmarks/phantom_semi.html), for which it has a softmax; [choice by choice](benchmarks/ablations.html). The hours in the names are arithmetic, not measurement, and cautious: the multiply-adds of a 256×256 slice, 800 of them annotated, at a twelfth of a T4's
# peak at half precision. A loop that keeps the card busy should need a third of the time; `--time-limit` sees to it that none is lost if it needs more.
#
# ## Fit
#
# `fit` opens the run folder, runs the method's phases, chooses the decision rule on the held-out slices, and writes the end of the story. It is what `ctseg fit` calls.
#
# It may end in three ways: finished; stopped by a time limit or SIGTERM, with everything saved (`Stopped`); or killed. In the latter two `resume=True` carries on, to the same result. With [several processes](parallel.html) all call `fit`, and the first one writes.

# %% [markdown]
# What can be known to fail is told before the run folder exists, so that a slip of the pen costs neither a teacher's training nor the folder's name.

# %%
#| export
def check_job(job: Job) -> str: # where a pretrained encoder's weights come from; "" without one
    "`InputError` for what would stop the run later: the model, the methods' own fields, how batches are divided."
    r, model = job.recipe, job.make_model()
    param_groups(model, r.lr, r.encoder_lr or None)
    if r.batch_size % world(): raise InputError(f"batch_size = {r.batch_size}: expected a multiple of the {world()} processes")
    if world()*r.pieces > r.batch_size: raise InputError(f"pieces = {r.pieces}: a batch of {r.batch_size} slices, of {world()} process{'es'*(world() > 1)}, cannot be cut into so many")
    if r.compile and not job.plan.can_compile: raise InputError(f"compile = True: {job.plan.name} is older than torch.compile supports (7.0); leave it off")
    if r.method == "mean-teacher" and r.perturb not in PERTURB: raise did_you_mean("perturbation", r.perturb, PERTURB)
    if r.method in ("teacher-student", "pretrain-finetune") and r.confidence not in (scores := [s for s in IMAGE_SCORES if s != "agreement"]):
        raise did_you_mean("confidence score of one teacher", r.confidence, scores)
    if r.method == "self-training": grouped_folds(job.labelled, r.teachers)
    if job.kept_out and r.method != "supervised": warnings.warn(f"{job.kept_out} unlabelled images are of held-out patients (or near-duplicates of their images) and stay out; --set fold=-1 holds out none")
    if n := job.unexamined: warnings.warn(f"nobody looked for {', '.join(n[:5])}{f' and {len(n) - 5} more' if len(n) > 5 else ''} on any slice to learn from: never drawn")
    return getattr(model, "weights_from", "")


# %%
#| export
def fit(
    data: SliceSet|str|Path, # the slices, or a challenge folder
    recipe: Recipe|str = DEFAULT_RECIPE, # or its name, or the `recipe.json` of a run
    out: str|Path = "runs/run", # the run folder
    seed: int = 0,
    resume: bool = False, # continue a run that was cut
    device: str = "auto",
    progress: bool = True,
    time_limit: str = "", # stop in time before so much has passed, e.g. "8h30m"
    annotated: str = "json", # of a challenge folder: what was examined, see `read_challenge`
) -> Run:
    "Train by a recipe; the finished run folder."
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    if recipe.method not in METHODS: raise did_you_mean("method", recipe.method, METHODS)
    if isinstance(data, SliceSet) and annotated != "json": raise InputError(f"annotated={annotated!r} is for reading a challenge folder, and these slices have been read; give it to read_challenge")
    plan, run = pick_device(device, recipe.precision), Run(out)
    with Deadline(read_duration(time_limit) if time_limit else math.inf) as deadline:
        make_accelerator(plan)  # connects the processes, if there are several
        on_main(lambda: run.check_free(resume))
        slices = data if isinstance(data, SliceSet) else main_first(lambda: read_challenge(data, annotated=annotated))
        job = Job(recipe, slices, run, plan, seed, progress, deadline)
        source = check_job(job)
        try:
            on_main(lambda: run.open(asdict(recipe), slices, seed, resume))
            if (run/"metrics.json").exists(): return run  # resumed after its end
            if progress and not rank():  # a forgotten GPU is better seen now than in the morning
                print(f"training on {job.where}", file=sys.stderr, flush=True)
                if source: print(f"the encoder starts from {source}", file=sys.stderr, flush=True)
            try:
                METHODS[recipe.method](job)
                stopped = on_main(lambda: _finish_in_time(job))
            except RuntimeError as e:  # a step has its own remedy; this was the data, or a prediction
                if not out_of_memory(e): raise
                raise InputError(f"{plan.name}: out of memory; choose a smaller image_size, batch_size or width") from e
            if agree(bool(stopped)): raise Stopped(stopped or "another process stopped")
        finally: run.unlock()
    return run


# %%
#| export
def _finish_in_time(job: Job) -> str:
    "`finish`; the reason if the deadline came first."
    try: finish(job)
    except Stopped as e: return str(e)
    return ""

def finish(job: Job):
    "Choose the rule, calibrate, write `curves.png` and, as the sign that the run is finished, `metrics.json`."
    import matplotlib.pyplot as plt
    facts = {"phases": job.done, "epochs": len(job.history), "dice held out, argmax": job.history[-1]["dice"]}
    rule, each = Rule(), job.in_time("while the decision rule was chosen; all phases are trained", together=False)
    share = min(16, max(1, job.recipe.batch_size//job.pieces))  # what training had room for
    if job.recipe.tune_rule and len(job.holdout):
        rule, scores = choose_rule(load_predictor(job.run.folder, job.plan), job.holdout, each=each, batch_size=share)
        facts |= {"dice held out, argmax": scores[Rule()], "dice held out, chosen rule": scores[rule]}  # both at the images' own size
    if len(np.unique(job.holdout.groups)) > 1: facts["calibration"] = calibrate_run(job.run, job.holdout, job.plan, job.recipe.tune_rule, each, share)
    fig = plot_curves(job.run.read_history())
    with atomic_path(job.run/"curves.png") as tmp: fig.savefig(tmp, dpi=120)
    plt.close(fig)
    write_json(facts | {"rule": asdict(rule)}, job.run/"metrics.json")


# %% [markdown]
# A small run on the sample, start to finish:

# %%
small = apply_settings(get_recipe("marginal"), ["width=4", "epochs=2", "image_size=64", "folds=4"])
with tempfile.TemporaryDirectory() as d:
    run = fit("../data_sample", small, Path(d)/"run", progress=False)
    print(sorted(str(p.relative_to(run.folder)) for p in run.folder.rglob("*") if p.is_file()))
    again = fit("../data_sample", small, Path(d)/"run", progress=False, resume=True)  # finished: nothing is trained again
    test_eq(get_recipe(str(run/"recipe.json")), small)
    for other in [dict(recipe=replace(small, lr=1e-4)), dict(recipe=small, seed=1)]:
        try: fit("../data_sample", out=Path(d)/"run", progress=False, resume=True, **other)
        except InputError as e: print(str(e).replace(d, "…"))

# %%
#| hide
import nbdev; nbdev.nbdev_export()
