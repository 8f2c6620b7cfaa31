# %% [markdown]
# # Command line
#
# > The `ctseg` command: each subcommand parses, calls one function of the package, and prints.
#
# - skip_showdoc: true

# %%
#| default_exp cli

# %% [markdown]
# Nothing happens here that a notebook could not do with the same function. Two rules: a user's mistake is **one line on standard error and exit status 2**; and results go to standard output in a form
# that reads well and parses easily. Heavy imports wait until a command needs them, so that `ctseg --help` answers at once. Before torch is imported, the [number of threads](threads.html) is chosen.

# %%
#| export
import contextlib, json, os, signal, sys, threading, warnings
from pathlib import Path
from typing import Annotated, Optional

import typer

from ctseg.files import InputError, read_json, write_json
from ctseg.threads import set_threads

# %%
#| hide
import tempfile
from typer.testing import CliRunner
from fastcore.test import test_eq

# %%
#| export
app = typer.Typer(name="ctseg", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
                  help="Learn to segment CT slices from partly labelled and unlabelled images.")

def _show_version(asked: bool):
    if not asked: return
    from importlib.metadata import version
    print(f"ctseg {version('ctseg')}")
    raise typer.Exit()

COMPUTES = ("predict", "report", "models", "doctor", "demo")  # with torch; `fit` may have to continue as it began

@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="show the version and stop")] = False,
):
    if context.invoked_subcommand in COMPUTES: _set_threads(None)


# %% [markdown]
# ## Training
#
# `torchrun --standalone --nproc_per_node=2 -m ctseg fit …` uses [two cards](parallel.html); one of the processes speaks. A run that stops before its end, because of `--time-limit` or because the host sends SIGTERM, says so in one line and ends with
# status 75, which means "try again later" to Unix mail programs, and here: run the same command with `--resume`.

# %%
#| export
SPEAKS = os.environ.get("RANK", "0") == "0"  # set by torchrun

@app.command()
def fit(
    data: Annotated[Path, typer.Argument(help="a challenge folder")],
    out: Annotated[Path, typer.Option(help="the run folder to write")],
    recipe: Annotated[str, typer.Option(help="see `ctseg recipes`; or the recipe.json of a run")] = "",
    set: Annotated[list[str], typer.Option(help="KEY=VALUE for any field of the recipe; may be repeated")] = [],
    seed: Annotated[int, typer.Option()] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="continue a run that was cut or stopped")] = False,
    time_limit: Annotated[str, typer.Option(help="stop in time, with everything saved, before so much has passed: 8h30m, 90m, …")] = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    annotated: Annotated[str, typer.Option(help="json: read annotated_labels.json; all: every class was examined; present: only classes with pixels were")] = "json",
):
    "Train by a recipe. Exit status 75: stopped by the time limit or SIGTERM, to be continued with --resume."
    _set_threads(out if resume else None)
    from ctseg.predict import read_rule
    from ctseg.recipes import DEFAULT_RECIPE, apply_settings, fit, get_recipe
    from ctseg.train import Stopped, unread
    _refuse_options(set)
    chosen = apply_settings(get_recipe(recipe or DEFAULT_RECIPE), set)
    if SPEAKS and resume and not os.path.exists(out/"recipe.json"): print(f"ctseg: no run in {out} yet: starting one", file=sys.stderr)
    for told in unread(chosen, set):
        if SPEAKS: print(f"ctseg: {told}", file=sys.stderr)
    try: run = fit(data, chosen, out, seed, resume, device, time_limit=time_limit, annotated=annotated)
    except Stopped as e:
        if SPEAKS: print(f"ctseg: {e}; everything is saved, continue with the same command and --resume", file=sys.stderr)
        raise typer.Exit(75)
    if SPEAKS:
        in_words = lambda facts: {k: str(read_rule(v)) if k == "rule" else in_words(v) if isinstance(v, dict) else v for k, v in facts.items()}
        _print_facts(in_words(read_json(run/"metrics.json")))
        print(f"run folder: {run.folder}")


# %%
#| export
def _set_threads(run: Path|None):
    "Choose the number of threads, before torch is loaded; for a `run` that is continued, the number it was started with."
    if "torch" in sys.modules: return
    began = read_json(run/"recipe.json") if run and (run/"recipe.json").exists() else {}
    number = began.get("threads") if isinstance(began, dict) else None
    set_threads(number=number if isinstance(number, int) and number > 0 else None)

def _refuse_options(settings):
    "`InputError` for a setting that is no field of the recipe but an option of the command."
    for key, value in (s.partition("=")[::2] for s in settings):
        if key in ("seed", "device", "recipe", "out", "time_limit", "annotated"): raise InputError(f"--set {key}={value}: not a field of the recipe but an option; give --{key.replace('_', '-')} {value}")

def _print_facts(facts: dict, indent: str = ""):
    "A line a fact; nested facts are indented."
    for k, v in facts.items():
        if isinstance(v, dict): print(f"{indent}{k}:"); _print_facts(v, indent + "  ")
        elif isinstance(v, list) and v and isinstance(v[0], dict):
            for i, x in enumerate(v): print(f"{indent}{k} {i}:"); _print_facts(x, indent + "  ")
        else: print(f"{indent}{k}: {_shown(v)}")

def _shown(v) -> str:
    if isinstance(v, list): return ", ".join(map(_shown, v)) or "none"
    return f"{v:.4f}" if isinstance(v, float) else str(v)


# %% [markdown]
# ## Prediction and scoring
#
# Networks predict in the precision they were trained in, unless another is asked for.

# %%
#| export
PRECISION = Annotated[Optional[str], typer.Option(help="fp32, fp16, bf16, or auto for the device's own; left out: as the runs were trained")]

def _where(device: str, precision: Optional[str]):
    "The plan for a device and precision; without a precision the device, for `load_predictor`."
    from ctseg.device import pick_device
    return pick_device(device, precision) if precision else device

@contextlib.contextmanager
def _memory_errors():
    "Tell that memory has run out in one line."
    try: yield
    except (RuntimeError, MemoryError) as e:
        from ctseg.train import out_of_memory
        if not isinstance(e, MemoryError) and not out_of_memory(e): raise
        raise InputError("out of memory; take a smaller --batch-size, or --device cpu") from e


# %%
#| export
@app.command()
def predict(
    runs: Annotated[list[Path], typer.Argument(help="one run folder, or several to average as probabilities")],
    images: Annotated[Path, typer.Option(help="a folder of PNG slices")],
    out: Annotated[Path, typer.Option(help="the submission to write (.csv or .csv.gz)")],
    tta: Annotated[int, typer.Option(help="views of each image to average: turned, enlarged, and mirrored if the runs were trained so")] = 1,
    probabilities: Annotated[Optional[Path], typer.Option(help="also keep the probabilities, as float16, in this file")] = None,
    rule: Annotated[str, typer.Option(help="saved: the one chosen in training; argmax: none, the most probable class")] = "saved",
    threshold: Annotated[Optional[float], typer.Option(help="least probability of a foreground pixel, instead of the chosen rule's")] = None,
    gate: Annotated[Optional[float], typer.Option(help="least peak probability of a class on an image, instead of the chosen rule's, if it has one")] = None,
    tune: Annotated[Optional[Path], typer.Option(help="the folder the runs were trained on: choose one rule for all of them on the slices they held out")] = None,
    calibrated: Annotated[bool, typer.Option("--calibrated", help="divide logits by the runs' temperatures; a run has one if it held out at least two patients or groups")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    annotated: Annotated[str, typer.Option(help="of --tune: json, all or present, as in `ctseg fit`")] = "json",
    precision: PRECISION = None,
):
    "Write the submission for a folder of images."
    from ctseg.calibrate import prepare
    from ctseg.predict import check_files, predict_folder
    check_files(images, out, probabilities)
    with _memory_errors():
        predictor = prepare(runs, _where(device, precision), tta, calibrated, tune, annotated, batch_size, rule, threshold=threshold, gate=gate)
        _print_facts(predict_folder(predictor, images, out, probabilities, batch_size, progress=True))
    print(f"submission: {out}" + (f"\nprobabilities: {probabilities}" if probabilities else ""))


# %%
#| export
@app.command()
def evaluate(
    truth: Annotated[Path, typer.Argument(help="the truth, in the challenge's CSV form")],
    prediction: Annotated[Path, typer.Argument(help="a submission")],
    annotated: Annotated[Optional[Path], typer.Option(help="annotated_labels.json, where the truth is partial (default: the one beside a y_train.csv); or all: every class was examined; or present: only classes with pixels were")] = None,
    classes: Annotated[Optional[Path], typer.Option(help="class_names.json; default: the one beside the truth, else the challenge's 54")] = None,
    json: Annotated[Optional[Path], typer.Option(help="write all figures here")] = None,
):
    "Score a submission: the challenge's Dice, a row per class, silent classes."
    from ctseg.metrics import evaluate_files
    result = evaluate_files(truth, prediction, annotated, classes)
    table = result["table"]
    print(table.to_string(float_format=lambda v: f"{v:.3f}"))
    _print_facts({k: v for k, v in result["facts"].items() if k != "per_class"})
    if json: write_json(result["facts"], json)


# %%
#| export
@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="a run folder; or several, to compare them with the first")],
    data: Annotated[Optional[Path], typer.Option(help="the folder they were trained on: its slices are scored and shown")] = None,
    split: Annotated[Optional[str], typer.Option(help="held-out (default): annotated slices that the runs have not trained on; test: the test slices, if their truth is there")] = None,
    out: Annotated[Optional[Path], typer.Option(help="the page to write; default: report.html, or comparison.html, in the first run's folder")] = None,
    slices: Annotated[Optional[int], typer.Option(min=1, help="at most so many on the page of one run (default: 300)")] = None,
    annotated: Annotated[str, typer.Option(help="json, all or present, as in `ctseg fit`")] = "json",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    precision: PRECISION = None,
):
    "Write one self-contained page about a run, or one that compares several."
    from ctseg.report import report, report_comparison
    for option, value in (("--split", split), ("--slices", slices)):
        if value and not data: raise InputError(f"{option} needs --data FOLDER: without it no slices are scored or shown")
    if slices and len(runs) > 1: raise InputError("--slices is for the page of one run; a comparison shows no slices")
    with _memory_errors():
        if len(runs) == 1: print(f"page: {report(runs[0], data, split or 'held-out', out, slices or 300, annotated, _where(device, precision), batch_size)}"); return
        page, records = report_comparison(runs, data, split or "held-out", out, annotated, _where(device, precision), batch_size)
    wide = max(23, *(len(r["run"]) for r in records)) + 1
    for r in records:
        argmax = f"   by argmax {r['argmax']:.4f}, to the first {r['argmax_difference']:+.4f} [{r['argmax_paired'][0]:+.3f}, {r['argmax_paired'][1]:+.3f}]" if any(x["chosen"] for x in records) else ""
        print(f"{r['run']:<{wide}}Dice {r['dice']:.4f} [{r['interval'][0]:.3f}, {r['interval'][1]:.3f}]   to the first {r['difference']:+.4f} [{r['paired'][0]:+.3f}, {r['paired'][1]:+.3f}]{argmax}   silent: {', '.join(r['silent']) or 'none'}")
    print(f"page: {page}")


# %%
#| export
@app.command()
def check(
    data: Annotated[Path, typer.Argument(help="a challenge folder")],
    submission: Annotated[Optional[Path], typer.Option(help="check this submission against the folder's test images")] = None,
    annotated: Annotated[str, typer.Option(help="json, all or present; see `ctseg fit --help`")] = "json",
):
    "Validate a challenge folder, or a submission against it."
    from ctseg.data import check_challenge, check_submission
    _print_facts(check_submission(submission, data) if submission else check_challenge(data, annotated=annotated))
    print("ok")


# %% [markdown]
# ## Volumes in, volumes out
#
# Hospitals keep volumes, the challenge has slices. `import` cuts the one into the other and notes where each slice came from; `export` puts predictions back.

# %%
#| export
def _slicing(default, **given):
    "`default` with the options that were given."
    from dataclasses import replace
    return replace(default, **{k: v for k, v in given.items() if v is not None})

@app.command("import")
def import_(
    kind: Annotated[str, typer.Argument(help="openkbp, nifti, dicom or totalsegmentator")],
    src: Annotated[Path, typer.Argument(help="the folder to read; a patients.json in it, {case: patient}, keeps the scans of a patient together (nifti)")],
    out: Annotated[Path, typer.Argument(help="the challenge folder to write")],
    window: Annotated[Optional[str], typer.Option(help="display window: soft, lung, bone, … or random")] = None,
    every: Annotated[Optional[int], typer.Option(help="each n-th slice")] = None,
    per_volume: Annotated[Optional[int], typer.Option(help="at most so many slices of a volume")] = None,
    size: Annotated[Optional[int], typer.Option(help="side of the images in pixels: of larger slices the part around the body is kept (openkbp, nifti, dicom), or they are shrunk (totalsegmentator)")] = None,
    classes: Annotated[Optional[Path], typer.Option(help="class_names.json (nifti, dicom, totalsegmentator)")] = None,
    test_share: Annotated[float, typer.Option(help="share of the patients set aside as a test (nifti, dicom)")] = 0.0,
    annotated: Annotated[Optional[str], typer.Option(help="what a zero of a label map means: json, all (everything was looked for) or present (nifti)")] = None,
    rename: Annotated[Optional[Path], typer.Option(help="a JSON, label of a structure → name of its class (dicom)")] = None,
    gaps: Annotated[bool, typer.Option("--gaps", help="take a gap that looks like a missing slice as it is (dicom)")] = False,
    key: Annotated[Optional[Path], typer.Option(help="write here, for yourself, which volume came from which file; it may name patients (nifti, dicom)")] = None,
):
    "Cut volumes into a challenge folder; structures nobody contoured stay unknown."
    import inspect
    from ctseg import datasets, dicom, volumes
    from ctseg.files import did_you_mean
    kinds = {"openkbp": datasets.import_openkbp, "nifti": volumes.import_nifti, "dicom": dicom.import_dicom, "totalsegmentator": datasets.import_totalsegmentator}
    if kind not in kinds: raise did_you_mean("kind of data", kind, kinds)
    takes = inspect.signature(kinds[kind]).parameters
    more = {k: v for k, v in dict(classes=classes and str(classes), test_share=test_share or None, annotated=annotated, rename=rename, gaps=gaps or None, key=key).items() if v is not None}
    if odd := more.keys() - takes.keys(): raise InputError(f"--{odd.pop().replace('_', '-')} is not an option of `ctseg import {kind}`")
    _print_facts(kinds[kind](src, out, slicing=_slicing(takes["slicing"].default, window=window, every=every, per_volume=per_volume, size=size), **more))
    print(f"challenge folder: {out}")


# %%
#| export
@app.command("export")
def export_(
    kind: Annotated[str, typer.Argument(help="nifti, dicom-seg or nnunet")],
    folder: Annotated[Path, typer.Argument(help="the challenge folder")],
    out: Annotated[Path, typer.Argument(help="the folder to write")],
    masks: Annotated[Optional[Path], typer.Option(help="the submission to put back onto the volumes (nifti, dicom-seg)")] = None,
    source: Annotated[Optional[Path], typer.Option(help="the DICOM folder it was imported from (dicom-seg)")] = None,
    split: Annotated[str, typer.Option(help="the slices the submission is of: test or train")] = "test",
    unknown: Annotated[str, typer.Option(help="what nobody looked for becomes: ignore, or background, which is false but runs (nnunet)")] = "ignore",
):
    "Put predictions back onto their volumes, or write the folder for nnU-Net."
    from ctseg import datasets, dicom, volumes
    from ctseg.files import did_you_mean
    if kind not in (kinds := ("nifti", "dicom-seg", "nnunet")): raise did_you_mean("kind of export", kind, kinds)
    if kind != "nnunet" and masks is None: raise InputError(f"`ctseg export {kind}` needs --masks SUBMISSION.csv")
    if kind == "dicom-seg" and source is None: raise InputError("`ctseg export dicom-seg` needs --source, the DICOM folder that was imported")
    if kind == "nifti": facts = volumes.export_nifti(masks, folder, out, split)
    elif kind == "dicom-seg": facts = dicom.export_dicom_seg(masks, folder, source, out, split)
    else: facts = datasets.export_nnunet(folder, out, unknown)
    _print_facts(facts or {})
    print(f"written: {out}")


# %% [markdown]
# ## Making things, listing things

# %%
#| export
@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="the challenge folder to write")],
    labelled: Annotated[int, typer.Option(help="annotated training slices")] = 800,
    unlabelled: Annotated[int, typer.Option(help="training slices without annotation")] = 1200,
    test: Annotated[int, typer.Option(help="test slices, with truth")] = 500,
    size: Annotated[int, typer.Option(help="pixels a side")] = 256,
    examined: Annotated[int, typer.Option(help="structures examined on an annotated slice")] = 27,
    truth: Annotated[bool, typer.Option("--truth", help="also write y_train_full.csv: every contour of every training slice")] = False,
    seed: Annotated[int, typer.Option()] = 0,
):
    "Write a challenge folder of a procedural body: no patient, full truth, any number of slices."
    from ctseg.phantom import make_phantom
    make_phantom(out, labelled, unlabelled, test, size, seed, examined, truth=truth)
    print(f"challenge folder: {out}")


# %%
#| export
@app.command()
def recipes(name: Annotated[Optional[str], typer.Argument(help="one of them, or the recipe.json of a run: list its fields")] = None):
    "List the recipes, or the fields of one: value, the default where it is another, meaning."
    from ctseg.recipes import DEFAULT_RECIPE, RECIPES, get_recipe, recipe_fields
    if name is None:
        for r in RECIPES.values(): print(f"{r.name:<24}{r.about}{'  (default)' if r.name == DEFAULT_RECIPE else ''}")
        return
    print(f"{(r := get_recipe(name)).name}: {r.about}")
    for key, value, default, meaning in recipe_fields(r):
        shown = f"{key} = {value if value != '' else '(none)'}" + (f"  (default: {default if default != '' else '(none)'})" if value != default else "")
        print(f"  {shown:<42}  {meaning}".rstrip())

@app.command()
def models(
    names: Annotated[Optional[list[str]], typer.Argument(help="which ones; default: all")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="without running training steps, which takes seconds for each model")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
):
    "What each model costs: parameters, multiply-adds at 256x256, and a training step on this device."
    from ctseg.device import pick_device
    from ctseg.models import list_models
    from ctseg.models.zoo import model_facts
    where = pick_device(device).device
    line = f"{{:<40}}{{:>12}}{{:>14}}" + ("" if plain else f"{{:>10}}{{:>9}}") + "  {}"
    print(line.format("model", "parameters", "multiply-adds", *(() if plain else ("ms/image", "peak MB")), f"paper   (256x256, 54 classes, {where}, batches of 2)"))
    for name in names or list_models():
        f = model_facts(name, device=where, measure=not plain)
        print(line.format(name, f"{f['parameters']:,}", f"{f['multiply_adds']/1e9:.1f} G", *(() if plain else (f"{f['ms_per_image']:.0f}", f"{f['peak_mb']:.0f}")), f["paper"]), flush=True)

@app.command()
def doctor():
    "Versions, devices, precision: what a bug report needs."
    from ctseg.device import doctor
    _print_facts(doctor())


# %% [markdown]
# ## The demo
#
# The whole job on the sample that comes with the repository, in minutes on a laptop: train, predict, score, and a picture to look at. Where the package was installed without the repository, a sample is made on the spot.

# %%
#| export
@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="the folder to write")] = Path("runs/demo"),
    data: Annotated[Optional[Path], typer.Option(help="a challenge folder with test truth; left out: data_sample, or a phantom where there is none")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an earlier demo")] = False,
    seed: Annotated[int, typer.Option(min=0, help="of the networks' first weights and of the order of the slices")] = 0,
):
    "Train teacher and student, predict, score and draw on data_sample, in minutes on a CPU."
    from ctseg.demo import run_demo
    from ctseg.train import Stopped
    try: run_demo(out, data, overwrite, seed=seed)
    except Stopped: raise typer.Exit(143)  # by SIGTERM; half a demo is none


# %% [markdown]
# ## Mistakes
#
# A misspelt option is a mistake like any other, so typer's own three lines become one. And SIGTERM, by which hosts and batch systems end a process, ends a command as Ctrl-C does: nothing half-written stays. `fit` listens to it in its own way, and stops with everything saved.

# %%
#| export
_UsageError = typer.BadParameter.__base__  # typer brings a click of its own, older ones use the package

def _usage(e) -> str:
    "A wrong command line in one line; the help where there was none at all."
    text = e.format_message()
    if type(e).__name__ == "NoArgsIsHelpError": return text
    text = " ".join(text.split()).rstrip(".")
    return f"ctseg: {text[:1].lower()}{text[1:]} (see `{e.ctx.command_path if e.ctx else 'ctseg'} --help`)"

@contextlib.contextmanager
def _clean_end():
    "SIGTERM becomes an exit with status 143, on the way to which temporary files are removed."
    def stop(*_):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt that
        raise SystemExit(143)
    if threading.current_thread() is not threading.main_thread(): yield; return  # Python delivers signals nowhere else
    before = signal.signal(signal.SIGTERM, stop)
    try: yield
    finally: signal.signal(signal.SIGTERM, before)


# %%
#| export
def main():
    "The console script: `app`, with mistakes told in one line and exit status 2."
    if not SPEAKS: warnings.simplefilter("ignore")
    elsewhere = warnings.formatwarning
    warnings.formatwarning = lambda message, category, filename, *a: f"ctseg: {message}\n" if Path(filename).is_relative_to(Path(__file__).parent) else elsewhere(message, category, filename, *a)
    try:
        with _clean_end(): status = app(prog_name="ctseg", standalone_mode=False) or 0  # of a `typer.Exit`; commands return nothing
        if status == 130: raise KeyboardInterrupt
        if "ctseg.parallel" in sys.modules: sys.modules["ctseg.parallel"].leave(status)
        sys.exit(status)
    except _UsageError as e:
        if SPEAKS: print(_usage(e), file=sys.stderr)
        sys.exit(2)
    except MemoryError:
        print("ctseg: out of memory", file=sys.stderr)
        sys.exit(2)
    except InputError as e:
        if not getattr(e, "told", False): print(f"ctseg: {e}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        if SPEAKS: print("\nctseg: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `ctseg … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as e:  # a disk or a file that nothing nearer has told of
        print(f"ctseg: {f'{e.filename}: ' if e.filename else ''}{e.strerror or e}", file=sys.stderr)
        sys.exit(2)


# %%
runner = CliRunner()
print(runner.invoke(app, ["recipes"]).output)
wrong = runner.invoke(app, ["fit", "../data_sample", "--out", "nowhere", "--set", "widht=16"])
print(wrong.exception)
assert isinstance(wrong.exception, InputError) and not Path("nowhere").exists()

# %%
#| hide
import nbdev; nbdev.nbdev_export()
