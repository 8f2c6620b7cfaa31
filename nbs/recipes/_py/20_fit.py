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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np

# %%
#| export
from ctseg.core.arguments import checks_arguments, options_of
from ctseg.core.device import DevicePlan, pick_device
from ctseg.core.atomic import atomic_path
from ctseg.core.errors import InputError, say
from ctseg.core.loading import collector_rests
from ctseg.core.schema import check_whole
from ctseg.core.parallel import agree, main_first, on_main, rank, world
from ctseg.core.registry import Plugin, load_plugin
from ctseg.data.slices import SliceSet
from ctseg.data.sources import knows_patients, read_slices, refuse_among_slices
from ctseg.inference.loop import Each
from ctseg.inference.rule import Rule
from ctseg.io.imported import imported_slicing
from ctseg.io.neighbours import neighbour_mm, with_neighbours
from ctseg.metrics.bootstrap import bootstrap_mean
from ctseg.metrics.evaluate import plain_value
from ctseg.prediction.choose import Part, choose_rule, rule_tables
from ctseg.prediction.outlines import least_shares
from ctseg.prediction.earlier import Earlier, earlier_runs
from ctseg.prediction.predictor import Predictor, load_predictor
from ctseg.prediction.prepare import calibrate_run
from ctseg.recipes.table import DEFAULT_RECIPE, RECIPES, get_recipe
from ctseg.runs.card import write_card
from ctseg.runs.folder import Run, make_spec
from ctseg.runs.job import Job
from ctseg.runs.network import decide_network
from ctseg.runs.notes import Watcher, device_in_words
from ctseg.runs.phases import Phases
from ctseg.runs.recipe import Recipe, is_setting, names_of, recipe_fields, recipe_plugins, unknown_setting
from ctseg.runs.start import check_free, held_run, prospect, start_run
from ctseg.runs.sums import write_metrics
from ctseg.training.curves import plot_curves
from ctseg.training.deadline import Deadline, Stopped, read_duration
from ctseg.training.learner import make_optimiser
from ctseg.training.memory import check_memory, free_bytes, least_bytes, memory_errors, read_size
from ctseg.training.setup import make_accelerator
from ctseg.training.trackers import Trackers, check_trackers

# %%
#| hide
import tempfile

from fastcore.test import test_eq

from ctseg.data.toys import toy_set
from ctseg.inference.loop import Member
from ctseg.losses.registry import create_loss
from ctseg.models.zoo import create_model
from ctseg.runs.network import with_fallback


# %% [markdown]
# `fit` takes slices and a recipe, trains, chooses the decision rule, and leaves a [run folder](../runs/20_folder.ipynb):
#
# ```python
# run = ctseg.fit("my_data", recipe="ctseg", out="runs/first")
# ```
#
# The parts come first on this page. [At the end](#the-call) a small run goes from start to finish.
#
# ## Before anything is trained
#
# Mistakes that can be found early are reported before the run folder exists. So a typing mistake costs neither a teacher's training nor the folder's name.

# %%
#| export
@collector_rests()  # PyTorch's optimisers load its compiler
def check_job(job: Job) -> str: # where a pretrained encoder's weights come from; "" without one
    "`InputError` for what would stop the run later: the network, the method's conditions, how batches divide."
    check_whole("seed", job.seed, 0, 2**63 - 1)
    check_batches(job.recipe)
    refuse_too_large(job)
    model = job.networks.prepare()
    make_optimiser(model, job.setup)
    compute = job.recipe.compute
    if compute.compile and not job.plan.can_compile:
        problem = f"{job.plan.name} is older than torch.compile supports (7.0)"
        raise InputError(f"compile = True: {problem}; leave it off")
    job.method.check(job)
    warn_of_split(job)
    return getattr(model, "weights_from", "")


# %%
#| export
def refuse_too_large(job: Job) -> None:
    "`InputError` if a step cannot fit into memory. A card works off a batch image by image if it must."
    recipe = job.recipe
    size = (job.image_size,)*2 if job.image_size else job.labelled.image_shape
    def build():
        return job.networks.build(trained=True)
    batch = -(-recipe.schedule.batch_size//(world()*recipe.compute.pieces))
    images = 1 if job.device.type == "cuda" else batch
    need = least_bytes(build, size, images, job.plan.precision == "fp32", recipe.data.channels)
    what = f"{recipe.model.name} at {size[0]}x{size[1]} pixels, {images} at a time"
    check_memory(need, free_bytes(job.device), what)


# %%
#| export
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
toy_job = Job(
    get_recipe("masked").change(width=4, folds=4), toy_set(16, 12)[0], Run("nowhere"), progress=False
)
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
# The decision rule is chosen, and the temperature fitted, on the held-out slices. A score of few slices is worth little, so it is kept with the number of slices and patients it stands on, and with its interval. `metrics.json` comes last: it is the sign that the run is finished.

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
def held_out_facts(
    predictor: Predictor,
    held_out: SliceSet, # what the run held out
    rules: dict[str, Rule],
    each: Each | None = None, # goes through the batches, and may stop; None: all in order
    batch_size: int = 16,
) -> dict[str, Any]: # slices, groups, level, and the interval of each rule's Dice by its name
    "On how many held-out slices and patients a run's scores stand, and their intervals."
    tables = rule_tables([Part(predictor, held_out)], list(rules.values()), batch_size, each)
    scores = {name: bootstrap_mean(table, held_out.groups) for name, table in zip(rules, tables)}
    intervals = {}
    for name, score in scores.items():
        intervals[name] = [plain_value(score["low"]), plain_value(score["high"])]
    groups = len(np.unique(held_out.groups))
    return {"slices": len(held_out), "groups": groups, "level": 0.95, "intervals": intervals}


# %%
slices, truth = toy_set(8, 8)
network = create_model("attunet", 1, 4, width=4).eval()
predictor = Predictor([Member(network, create_loss("marginal"))], slices.classes, pick_device("cpu"))
facts = held_out_facts(predictor, slices, {"argmax": Rule()})
print(facts["slices"], "slices,", facts["groups"], "groups,", list(facts["intervals"]))


# %%
#| export
def finish(phases: Phases) -> None:
    "Choose the rule, calibrate, write curves, card and `metrics.json`; `Stopped` if the deadline comes first."
    job, history = phases.job, phases.history
    facts: dict[str, Any] = {"phases": phases.completed, "epochs": len(history)}
    facts["dice held out, argmax"] = history[-1]["dice"]
    rule, tune = Rule(gate=job.recipe.rule.least_peak), job.recipe.rule.tune_rule
    each = job.in_time("while the decision rule was chosen; all phases are trained", together=False)
    batch_size = min(16, max(1, job.schedule.batch_size//phases.pieces))  # what training had room for
    rules = {"argmax": Rule()}
    predictor = load_predictor(job.run.folder, str(job.device)) if len(job.holdout) else None
    if tune and not predictor:  # no slices say whether they help
        rule = replace(rule, least=least_shares(job.labelled))
    if tune and predictor:
        rule, scores = choose_rule(
            predictor, job.holdout, each=each, batch_size=batch_size, outlined=job.labelled)
        facts["dice held out, argmax"] = scores[Rule()]  # both at the images' own size
        facts["dice held out, chosen rule"] = scores[rule]
        rules["chosen rule"] = rule
    if predictor:
        facts["held out"] = held_out_facts(predictor, job.holdout, rules, each, batch_size)
    if len(np.unique(job.holdout.groups)) > 1:
        facts["calibration"] = calibrate_run(
            job.run, job.holdout, predictor.plan, tune, each, batch_size, job.labelled)
    save_curves(job.run)
    write_card(job.run, facts)
    write_metrics(facts | {"rule": asdict(rule)}, job.run.folder)


# %%
print(finish.__doc__)


# %%
#| export
def finish_in_time(phases: Phases) -> str:
    "`finish`; the reason if the deadline came first."
    try: finish(phases)
    except Stopped as e: return str(e)
    return ""

def carry_out(phases: Phases) -> None:
    "All phases, then the end of the run; `Stopped` in every process if one had to stop."
    phases.carry_out()
    stopped = on_main(lambda: finish_in_time(phases))
    if agree(bool(stopped)): raise Stopped(stopped or "another process stopped")


# %% [markdown]
# ## The call
#
# `fit` may end in three ways: finished; stopped by a time limit or SIGTERM, with everything saved (`Stopped`); or killed. After the latter two `resume=True` carries on, to the same result. With [several processes](../core/60_parallel.ipynb) all call `fit`, and the first one writes.

# %%
#| export
Callback = Callable[[int, dict[str, Any], Path], Any]


# %%
#| export
@dataclass(frozen=True)
class FitOptions:
    "The options of `fit`: what is seldom given."
    time_limit: str = ""                 # stop in time before so much has passed, e.g. "8h30m"; empty: never
    annotated: str = "json"              # of a challenge folder: what was examined, see `read_challenge`
    plugins: Iterable[str | Path] = ()   # files that register methods, losses, networks, augmentations
    log: str | Iterable[str] = ()        # trackers of accelerate, see `check_trackers`
    callbacks: Iterable[Callback] = ()   # called after each epoch, see `as_watchers`
    init: str | Path | Run = ""          # a run to start from the weights of, by class name; empty: none
    teacher: str | Path | Run = ""       # a run that teaches its classes; empty: none
    memory: str = ""                     # most memory of the device for slices, e.g. "4GB"

    def deadline(self) -> Deadline:
        "When to stop."
        return Deadline(read_duration(self.time_limit) if self.time_limit else math.inf)

    def read(self, data: SliceSet | str | Path, context: int = 0) -> SliceSet:
        "The slices of a folder or a store, with so many neighbours; those already read as they are."
        if not isinstance(data, SliceSet):
            slices = main_first(lambda: read_slices(data, annotated=self.annotated))
            return with_neighbours(slices, data, "train", context)
        if self.annotated == "json": return data
        use = "is for reading a challenge folder, and these slices have been read"
        raise InputError(f"annotated={self.annotated!r} {use}; give it to read_challenge")


# %% [markdown]
# `fit` takes each of them as a keyword. An editor completes and checks them, since their types are declared:

# %% [markdown]
# A setting of the recipe is no option of `fit`; a line says where it goes.

# %%
#| export
def read_options(options: Mapping[str, Any], recipe: Recipe | str) -> FitOptions:
    "The options of `fit`; `InputError` for an unknown one, and for a setting of the recipe."
    known = {field.name for field in fields(FitOptions)}
    setting = next((name for name in options if name not in known and is_setting(name)), "")
    if setting:
        name = recipe.name if isinstance(recipe, Recipe) else recipe
        remedy = f"get_recipe({name!r}).change({setting}={options[setting]!r})"
        raise InputError(f"fit: {setting} is a setting of the recipe; give recipe={remedy}")
    return options_of(FitOptions, options, "fit")


# %%
for wrong in ({"lr": 0.1}, {"time_limits": "1h"}):
    try: read_options(wrong, "marginal")
    except InputError as e: print(e)


# %%
#| export
class FitKeywords(TypedDict, total=False):
    "The keywords of `fit` that become `FitOptions`, which says what they mean."
    time_limit: str
    annotated: str
    plugins: Iterable[str | Path]
    log: str | Iterable[str]
    callbacks: Iterable[Callback]
    init: str | Path | Run
    teacher: str | Path | Run
    memory: str


# %%
test_eq(FitKeywords.__annotations__, FitOptions.__annotations__)

# %%
options = FitOptions(time_limit="8h30m", annotated="all")
print(options.deadline().why() or "there is time")
try: options.read(toy_set(4, 4)[0])
except InputError as e: print(e)


# %% [markdown]
# ### Callbacks
#
# `fit(…, callbacks=[watch])` calls `watch(epoch, row, folder)` in the first process after each epoch, when its row is in `history.csv` and its checkpoint is saved. `epoch` counts from 1 through all phases, `row` is a copy of the row, `folder` the run folder. If it returns a text, this is a reason to stop, as if the time were up (raising `Stopped` does the same); anything else is ignored. The run can then be continued with `resume=True`. An exception ends the training and reaches the caller of `fit`. Random numbers that a callback draws change nothing: those of the training are functions of the seed and the step.

# %%
#| export
def as_watchers(callbacks: Iterable[Callback], folder: Path) -> tuple[Watcher, ...]:
    "Callbacks as phases call them, with the history; a text that one of them returns becomes `Stopped`."
    def watcher(callback: Callback) -> Watcher:
        def watch(history: list[dict]) -> None:
            answer = callback(len(history), dict(history[-1]), folder)
            if isinstance(answer, str) and answer:
                raise Stopped(answer)
        return watch
    return tuple(watcher(callback) for callback in callbacks)


# %%
#| export
def tell_of_groups(job: Job, data: Any) -> None:
    "Without a `patients.json`, say on how many groups of near-duplicates the held-out figures rest."
    if isinstance(data, SliceSet) or not len(job.holdout) or knows_patients(data):
        return
    groups = len(np.unique(job.holdout.groups))
    slices = f"{len(job.holdout)} slices in {groups} groups of near-duplicates"
    rest = f"the figures of held-out slices rest on {slices}"
    print(f"no patients.json: {rest}; several groups may be of one patient", file=sys.stderr, flush=True)


# %%
def target(epoch, row, folder):
    if row["dice"] > 0.5: return "good enough"

watch, = as_watchers([target], Path("runs/first"))
try: watch([{"dice": 0.6}])
except Stopped as e: print(e)


# %%
#| export
def announce(job: Job, data: Any, source: str, earlier: Iterable[str] = ()) -> None:
    "Say on which device a run trains, from which weights an encoder starts, what comes from earlier runs, and how few groups are held out."
    if rank(): return
    # a forgotten GPU is better seen now
    lines = [f"training on {device_in_words(job.plan)}: {job.recipe.model.name}"]
    if source: lines.append(f"the encoder starts from {source}")
    for line in [*lines, *earlier]:
        say(line, sys.stderr)
    tell_of_groups(job, data)


# %%
announce(toy_job, toy_set(16, 12)[0], "", ["starting from first: liver, spleen"])

# %%
#| export
TOO_LARGE = "out of memory; choose a smaller image_size, batch_size or width"  # a step has its own remedy


def start_and_tell(run: Run, spec: dict[str, Any], resume: bool, tell: bool) -> None:
    "`start_run`; with `tell`, then a line about what `resume` has found there, see `prospect`."
    found = prospect(run) if resume and tell else ""
    start_run(run, spec, resume)
    if found: say(f"ctseg: {found}", sys.stderr)


# %%
#| export
def open_trackers(names: tuple[str, ...], run: Run, spec: dict[str, Any]) -> Trackers | None:
    "The trackers of a run, with the recipe as configuration; None in other processes, or without any."
    if rank() or not names: return None
    config = {key: value for key, value, _, _ in recipe_fields(spec["recipe"])}
    facts = {"recipe": spec["recipe"].name, "seed": spec["seed"], "data": spec["data"]["fingerprint"]}
    return Trackers(names, run.folder, facts | config)


def carry_out_watched(
    job: Job, names: tuple[str, ...], spec: dict[str, Any], callbacks: Iterable[Callback] = (),
) -> None:
    "`carry_out` with callbacks, and with trackers by their names, which are closed at its end."
    watchers = as_watchers(callbacks, job.run.folder)
    trackers = open_trackers(names, job.run, spec)
    if trackers is None: return carry_out(Phases(job, watchers))
    try: carry_out(Phases(job, (trackers, *watchers)))
    finally: trackers.finish()


# %%
print(open_trackers((), Run("nowhere"), {}))


# %%
#| export
def with_plugins(recipe: Recipe | str, paths: Iterable[str | Path]) -> tuple[Recipe, list[Plugin]]:
    "A recipe, maybe by its name, and the plugins that it needs or that are given as files."
    given = [load_plugin(path) for path in paths]
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    return recipe, list(dict.fromkeys([*given, *recipe_plugins(recipe)]))


# %%
print(with_plugins("masked", [])[1])


# %% [markdown]
# Where the slices were cut from volumes, the run records how, so that `ctseg segment` can cut new scans in the same way.

# %%
#| export
def how_cut(data: SliceSet | str | Path, context: int = 0) -> dict[str, Any]:
    "`slicing`, and for neighbours `neighbour_mm`: how a folder's images were cut from volumes; {}: they were not."
    if isinstance(data, SliceSet): return {}
    try:
        slicing = imported_slicing(data)
    except InputError as e:
        warnings.warn(f"{e}; the run will not know how its images were cut")
        return {}
    if not slicing: return {}
    return {"slicing": slicing} | ({"neighbour_mm": neighbour_mm(data)} if context else {})


# %%
print(how_cut("../../data_sample"))


# %% [markdown]
# A recipe may leave small images, or a missing encoder, to [another network](../runs/28_network.ipynb). A setting that was changed by the user must not get lost on the way.

# %%
#| export
def refuse_lost_settings(
    given: Recipe,
    decided: Recipe, # with the network that is trained
    why: str = "", # it is another one
) -> None:
    "`InputError` for a changed setting of a named recipe that the network in place of its own does not have."
    if decided.model.name == given.model.name or given.name not in RECIPES:
        return
    usual = RECIPES[given.name]
    own = [name for name in names_of(given.model) if name not in ("fallback", "from_size")]
    changed = [name for name in own if getattr(given.model, name) != getattr(usual.model, name, None)]
    changed = [name for name in changed if name not in names_of(decided.model)]
    problems = [str(unknown_setting({"model": decided.model}, name)) for name in changed]
    rate = given.schedule.encoder_lr
    if rate not in (usual.schedule.encoder_lr, decided.schedule.encoder_lr):
        problems.append(f"encoder_lr = {rate}: the model {decided.model.name} has no pretrained encoder")
    if not problems: return
    remedy = f"--set model={given.model.name} asks for the other network"
    raise InputError("; ".join(filter(None, [problems[0], why, remedy])))


# %%
default = get_recipe("ctseg")
refuse_lost_settings(default.change(width=16), with_fallback(default.change(width=16)))
try: refuse_lost_settings(default.change(frozen=True), with_fallback(default))
except InputError as e: print(e)


# %%
#| export
def make_job(
    recipe: Recipe, slices: SliceSet, run: Run, seed: int, more: FitOptions,
    plan: DevicePlan, deadline: Deadline, progress: bool,
) -> tuple[Job, Earlier, dict]: # the job, what it takes from earlier runs, what recipe.json says of both
    "The job of a fit."
    given = recipe
    recipe, facts = main_first(lambda: decide_network(given, run, slices.image_shape))
    refuse_lost_settings(given, recipe, facts.get("replaced", ""))
    earlier = earlier_runs(more.init, more.teacher, recipe, slices.classes, plan)
    options = earlier.options(deadline, read_size(more.memory) if more.memory else None)
    job = Job(recipe, slices, run, plan, seed, progress, options)
    return job, earlier, earlier.record() | facts


# %%
#| export
@checks_arguments
def fit(
    data: SliceSet | str | Path,
    recipe: Recipe | str = DEFAULT_RECIPE,
    out: str | Path = "runs/run",
    seed: int = 0,
    resume: bool = False,
    device: str = "auto",
    progress: bool = True,
    **options: Unpack[FitKeywords],
) -> Run:
    """Train by a recipe; the finished run. `InputError` for what must change, `Stopped` at the time limit.

    data: slices, a challenge folder or a store. recipe: or its name, or a `recipe.json`. resume: go on if cut.
    Seldom given, see `FitOptions`: time_limit, annotated, plugins, log, callbacks, init, teacher, memory."""
    more = read_options(options, recipe)
    names = check_trackers(more.log)
    recipe, plugins = with_plugins(recipe, more.plugins)
    refuse_among_slices(out, data)
    plan, run = pick_device(device, recipe.compute.precision), Run(out)
    with more.deadline() as deadline, memory_errors(f"{plan.name}: {TOO_LARGE}"):
        make_accelerator(plan)  # connects the processes
        on_main(lambda: check_free(run, resume))
        with held_run(run):
            slices = more.read(data, recipe.data.context)
            job, earlier, facts = make_job(recipe, slices, run, seed, more, plan, deadline, progress)
            source = check_job(job)
            spec = make_spec(job.recipe, slices, seed, plugins, facts) | how_cut(data, slices.context)
            on_main(lambda: start_and_tell(run, spec, resume, progress))
            if run.finished: return run
            if progress: announce(job, data, source, earlier.lines())
            carry_out_watched(job, names, spec, more.callbacks)
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
    # finished: nothing is trained again
    again = fit(slices, small, Path(d)/"first", device="cpu", progress=False, resume=True)
    test_eq(get_recipe(str(run/"recipe.json")), small)
    for other in [dict(recipe=small.change(lr=1e-4)), dict(recipe=small, seed=1)]:
        try: fit(slices, out=Path(d)/"first", device="cpu", progress=False, resume=True, **other)
        except InputError as e: print(str(e).replace(d, "…"))
