# %% [markdown]
# # Report
#
# > One page to look at: what a run learnt, where it is wrong, and what nobody could know. It opens anywhere, offline, on a phone too.
#
# - skip_showdoc: true

# %%
#| default_exp report.page

# %%
#| export
import json
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from ctseg.core.anatomy import ClassMap
from ctseg.core.atomic import atomic_path, check_file_place
from ctseg.core.device import DevicePlan
from ctseg.core.errors import InputError
from ctseg.data.slices import SliceSet
from ctseg.data.store import is_store, store_splits
from ctseg.inference.rule import Rule
from ctseg.prediction.prepare import prepare
from ctseg.prediction.saved import run_classes, run_spec
from ctseg.prediction.sureness import judged
from ctseg.report.facts import prediction_facts, pseudo_facts, read_split, run_facts, scored_slices
from ctseg.report.pictures import pack_slices
from ctseg.runs.source import find_run, hub_name

# %%
#| hide
import re
import tempfile
from dataclasses import replace
from html import escape
from pathlib import Path

import numpy as np
from IPython.display import display

from ctseg.core.anatomy import ClassMap
from ctseg.data.toys import toy_set
from ctseg.inference.rule import Rule
from ctseg.recipes.fit import fit
from ctseg.recipes.table import get_recipe
from ctseg.runs.recipe import apply_settings

# %% [markdown]
# A mean Dice of 0.55 may be seven structures at 0.55, or six at 0.64 and one that was never drawn. The picture of a slice tells in a second what no table does: that the cord is found and its ends are not, or that left and right are swapped. So after training one should **look**, and looking is one command:
#
#     ctseg report RUN --data FOLDER      # writes RUN/report.html
#
# Here is the page of a small run that is trained while this notebook runs: a body with two lungs and a heart, two of three structures examined on each annotated slice, and the [teacher–student](../methods/30_teacher_student.ipynb) method. Click into the page and use the arrow keys.

# %%
slices, _ = toy_set(60, labelled=40, size=64)
recipe = apply_settings(
    get_recipe("teacher-student"), ["width=8", "epochs=14", "folds=4", "lr=5e-3", "keep=0.5"]
)
keep = tempfile.TemporaryDirectory()
run = fit(slices, recipe, Path(keep.name)/"toy", device="cpu", progress=False)
(run/"timings.csv").unlink()  # seconds would differ whenever this notebook runs

# %%
#| echo: false
from ctseg.report.page import report
text = report(run.folder, slices, most=6).read_text(encoding="utf-8")
frame = (
    f'<iframe title="a report" style="width: 100%; height: 46rem; border: 1px solid #8884" '
    f'srcdoc="{escape(text)}"></iframe>'
)
display({"text/html": frame}, raw=True)


# %% [markdown]
# ## Templates are files
#
# The page is put together by [Jinja](https://jinja.palletsprojects.com) from files in `ctseg/report/templates`, which are written as such pages usually are:
#
# | file | what it holds |
# |---|---|
# | `base.html` | the frame of every page: head, style, footer |
# | `run.html`, `comparison.html` | the two pages |
# | `macros.html` | a number, an interval, a structure with its colour |
# | `style.css` | the look, in light and dark, on a wide screen and on a phone |
# | `slices.js` | unpacking, painting and flipping through slices |
#
# Style and script are put into the page, so that it stays one file. Autoescaping is on: whatever comes from a recipe, a class name or a file name is text and stays text. On top of that the page forbids itself to load anything (`Content-Security-Policy`).

# %%
#| export
def environment() -> jinja2.Environment:
    "Jinja with the templates of this package; a name that a template misses is an error."
    loader = jinja2.PackageLoader("ctseg.report", "templates")
    env = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined,
                             trim_blocks=True, lstrip_blocks=True)

    def text_of(name: str) -> Markup:
        source, _, _ = loader.get_source(env, name)
        return Markup(source.strip())
    env.globals["text_of"] = text_of
    return env


# %%
print(", ".join(sorted(environment().list_templates())))


# %%
#| export
def hex_colours(classes: ClassMap) -> list[str]:
    "The colours of background and classes, as `#rrggbb`."
    return ["#%02x%02x%02x" % tuple(colour) for colour in classes.colours]

def fill_template(template: str, classes: ClassMap, **facts: Any) -> str:
    "A page from a template such as `run.html`; everything is escaped except what is `Markup`."
    names = ["background", *classes.names]
    page = environment().get_template(template)
    return page.render(names=names, colours=hex_colours(classes), **facts).strip() + "\n"


# %%
rude = ClassMap(["</script><b>liver", "spleen", "kidney"])
empty = dict(
    records=[], scored_on="0 slices", groups=0, scored=[0], settings=[], by_argmax=True, held_out=True
)
page = fill_template("comparison.html", rude, **empty)
assert "<b>liver" not in page and "&lt;b&gt;liver" in page
print(page[:page.index("<style>")])


# %% [markdown]
# Slices travel as JSON inside a script element. No `<` can end that element early.

# %%
#| export
def page_data(sets: list[dict[str, Any]], slices: SliceSet) -> Markup:
    "The sets of slices for `slices.js`, with names, colours and size, as JSON."
    height, width = slices.image_shape
    data = {"names": ["background", *slices.classes.names], "colours": hex_colours(slices.classes)}
    data |= {"height": height, "width": width, "sets": sets}
    text = json.dumps(data, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


# %%
assert "</script>" not in page_data([], replace(slices, classes=rude))
print(page_data([], slices))

# %% [markdown]
# ## The parts of a page
#
# A run may be in its first phase, or have no calibration, or no pseudo-labels. A section is shown if there is something to show, and so is its link at the top.
#
# One thing the page says out loud: a decision rule that was chosen on the held-out slices has seen them, so the score on them is a little too good.

# %%
#| export
NO_SLICES = dict.fromkeys(["score", "rows", "heat", "sides", "sets", "rule", "scored_on", "rule_has_seen"])
SECTIONS = (  # id and title of each section, and the facts of which it needs one
    ("slices", "slices", ("sets",)),
    ("classes", "structures", ("rows",)),
    ("confusion", "confusion", ("heat",)),
    ("curves", "training", ("curves",)),
    ("calibration", "calibration", ("reliability",)),
    ("pseudo", "pseudo-labels", ("pseudo", "cells")),
    ("recipe", "recipe", ("recipe",)),
)

def sections(facts: dict[str, Any]) -> list[tuple[str, str]]:
    "Id and title of the sections for which there are facts."
    return [(id, title) for id, title, needs in SECTIONS if any(facts[name] for name in needs)]


# %%
print(
    sections(
        NO_SLICES | {"curves": "<svg>", "reliability": None, "pseudo": None, "cells": None, "recipe": [1]}
    )
)


# %%
#| export
def training_slices(
    data: str | Path | SliceSet, split: str, annotated: str, context: int = 0,
) -> SliceSet | None:
    "The slices of the data that runs are trained on, with so many neighbours; None where it holds a test alone."
    if split == "test" and not isinstance(data, SliceSet):
        known = "train" in store_splits(data) if is_store(data) else (Path(data)/"train-images").is_dir()
        if not known: return None
    return read_split(data, "held-out", annotated, context)


# %%
#| export
def scored_facts(
    slices: SliceSet, # that were scored
    pred: np.ndarray, # uint8 [N, H, W]
    split: str, # where they come from: "held-out" or "test"
    most: int, # slices on the page
    extra: list[dict[str, Any]], # sets of other slices, from `pseudo_facts`
    sure: dict[str, np.ndarray] | None = None, # what `judged` says of them
) -> dict[str, Any]:
    "What the page says about predictions, and the slices themselves."
    what, name = "annotated slices that this run held out", "held-out slices"
    if split == "test": what = name = "test slices"
    room = max(1, most - sum(len(shown["slices"]) for shown in extra))
    sets = [{"name": name, "truth": True, "slices": pack_slices(slices, pred, room)}, *extra]
    facts = prediction_facts(slices, pred, sure)
    groups = len(np.unique(slices.groups))
    on = f"{len(slices)} {what}, of {groups} patients (or groups of related slices)"
    return facts | {"sets": page_data(sets, slices), "scored_on": on}


# %%
held_out = scored_slices(run, slices)
facts = scored_facts(held_out, held_out.masks, "held-out", 3, [])
print(
    facts["scored_on"],
    "| Dice",
    facts["score"]["dice"],
    "|",
    len(json.loads(facts["sets"])["sets"][0]["slices"]),
    "slices on the page",
)


# %% [markdown]
# ## Putting it together

# %%
#| export
def rule_facts(rule: Rule, split: str) -> dict[str, Any]:
    "The rule in words, and whether it was chosen on the very slices that are scored."
    return {"rule": str(rule), "rule_has_seen": split == "held-out" and rule != Rule()}


# %% [markdown]
# A page goes where it was asked for, or into the run folder:

# %%
#| export
def page_place(run: str | Path, out: str | Path | None, name: str) -> Path:
    "Where a page goes: to `out`, or as `name` into the run folder; `InputError` where it cannot."
    if not out and hub_name(run):
        raise InputError(f"{run}: a run on the hub has no folder to write {name} into; give --out FILE.html")
    place = Path(out) if out else Path(run)/name
    if out or Path(run).is_dir():  # else it is no run, which is told elsewhere
        check_file_place(place)
    return place

def write_page(page: str, path: str | Path) -> Path:
    "Write a page, whole or not at all; its path."
    path = Path(path)
    with atomic_path(path) as tmp:
        tmp.write_text(page, encoding="utf-8")
    return path


# %%
print(rule_facts(Rule(0.4), "held-out"), rule_facts(Rule(0.4), "test"))
print(write_page("<p>a page", Path(keep.name)/"page.html").read_text())


# %%
#| export
def report(
    run: str | Path, # see `find_run`
    data: str | Path | SliceSet | None = None, # what it was trained on; None: only what the run folder holds
    split: str = "held-out", # or "test"
    out: str | Path | None = None, # the page; None: report.html in the run folder
    most: int = 300, # slices on the page
    annotated: str = "json", # of a folder, see `read_challenge`
    plan: DevicePlan | str | None = None, # see `load_predictor`
    batch_size: int = 16,
) -> Path: # where it was written
    "Write the page of one run. Without `data` the run may still be in its first phase."
    place, trained = page_place(run, out, "report.html"), find_run(run)
    spec = run_spec(trained, weights=data is not None)
    facts = NO_SLICES | run_facts(trained, spec)
    if data is None:
        pseudo, _ = pseudo_facts(trained, spec)
    else:
        train = training_slices(data, split, annotated, spec["recipe"].data.context)
        slices = scored_slices(trained, train if split == "held-out" else data, split, annotated, spec)
        predictor = prepare(trained.folder, plan)
        sure = judged(predictor, slices, batch_size)
        same_data = train is not None and train.fingerprint() == spec["data"]["fingerprint"]
        pseudo, sets = pseudo_facts(trained, spec, train if same_data else None, max(1, most//6))
        facts |= scored_facts(slices, sure["labels"], split, most, sets, sure)
        facts |= rule_facts(predictor.rule, split)
    facts |= pseudo
    page = fill_template("run.html", run_classes(spec), places=sections(facts), **facts)
    return write_page(page, place)


# %% [markdown]
# What must not be on the page is not on it: no address to load anything from, no folder of this machine.

# %%
path = report(run.folder, slices, most=6)
text = path.read_text(encoding="utf-8")
seen = re.sub(r'<script type="application/json".*?</script>|<svg.*?</svg>', "", text, flags=re.S)
assert not re.search(r"https?://|src=(?!\")|@import|url\(", seen) and keep.name not in text
assert "Content-Security-Policy" in text and "not a medical device" in text
print(f"{path.name}: {len(text)/1e3:.0f} kB with", *re.findall(r'<section id="(\w+)">', text))
keep.cleanup()
