# %% [markdown]
# # Report
#
# > One page to look at: what a run learnt, where it is wrong, and what nobody could know. It opens anywhere, offline, on a phone too.
#
# - skip_showdoc: true

# %%
#| default_exp report

# %% [markdown]
# A mean Dice of 0.55 may be seven structures at 0.55, or six at 0.64 and one that was never drawn. The picture of a slice tells in a second what no table does: that the cord is found and its ends are not, or that left and right are swapped.
# So after training one should **look**, and looking should be one command: `ctseg report RUN --data FOLDER` writes `RUN/report.html`.
#
# The page is **one file**. Pictures, numbers and script are in it, nothing is loaded from anywhere, so it can be kept beside the weights, mailed, opened on a phone. That sets a budget: 300 slices in less than 5 MB. And it must be fit to be shown: no patient's name, no date,
# no path of anybody's disk.
#
# The parts: [what is scored](#what-is-scored), [the numbers](#the-numbers), [the slices](#the-slices-in-little-space), [the page](#the-page) and, for several runs, [the comparison](#several-runs).

# %%
#| export
import base64, io, json, re, zlib
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup
from PIL import Image

from ctseg.anatomy import ClassMap
from ctseg.calibrate import plot_reliability, prepare
from ctseg.data import SliceSet, read_challenge
from ctseg.device import DevicePlan
from ctseg.files import InputError, atomic_path, did_you_mean, read_json, refuse_folder
from ctseg.metrics import bootstrap_mean, dice_table, evaluate, mean_dice, overlaps, paired_bootstrap, per_class
from ctseg.predict import Rule, held_out_by, predict_masks, run_spec
from ctseg.train import Recipe, Run, plot_curves

# %%
#| hide
import tempfile
from dataclasses import replace
import matplotlib.pyplot as plt
from fastcore.test import test_eq, test_close
from ctseg.device import pick_device
from ctseg.phantom import phantom_slices
from ctseg.recipes import fit


# %% [markdown]
# ## What is scored
#
# By default the annotated slices that **this run held out**: the only ones with truth that it has never trained on. With `split="test"` the test slices of the folder, if their truth is there.
#
# One thing the page says out loud: the decision rule was chosen on the held-out slices, so the score on them is a little kind.

# %%
#| export
def scored_slices(
    run: Run,
    data, # the challenge folder the run was trained on, or its slices
    split: str = "held-out", # "held-out": annotated slices kept apart in training; "test": the test slices
    annotated: str = "json",
) -> SliceSet:
    "The slices with truth that a run may be judged by."
    if split not in (options := ("held-out", "test")): raise did_you_mean("split", split, options)
    slices = data if isinstance(data, SliceSet) else read_challenge(data, "test" if split == "test" else "train", annotated)
    if list(slices.classes.names) != list(run_spec(run)["classes"].values()): raise InputError(f"{run.folder}: knows other classes than the data it is to be scored on")
    if split == "held-out": slices = slices[held_out_by(run, slices)]
    if not slices.labelled.any():
        raise InputError(f"{run.folder}: " + ("the test slices have no truth here; leave out --split test" if split == "test" else "held out no slices (fold=-1); give --split test"))
    return slices


# %% [markdown]
# ## The numbers
#
# `evaluate` and `per_class` of [the metrics](metrics.html) give the score with its interval, inventions, misses and silent classes. One table is missing there: **what is taken for what**. Rows are the true structures, columns what their pixels were called, as shares; averaged over the slices that have the structure, so that a large
# one does not drown the others. Pixels stored as 0 have no row: nobody said what they are.

# %%
#| export
def confusion(
    pred: np.ndarray, # uint8 [N, H, W]
    truth: np.ndarray, # the same; 0 = background or unknown
    C: int,
) -> np.ndarray: # float64 [C, C+1]: share of the pixels of class c+1 that were called 0 … C; NaN for classes without pixels
    "What the labelled pixels of each class were called, averaged over the slices that have it."
    total, slices = np.zeros((C, C + 1)), np.zeros((C, 1))
    for p, t in zip(pred, truth):
        count = np.bincount(t.ravel().astype(int)*(C + 1) + p.ravel(), minlength=(C + 1)**2).reshape(C + 1, C + 1)[1:]
        area = count.sum(1, keepdims=True)
        total, slices = total + count/np.maximum(area, 1), slices + (area > 0)
    return np.divide(total, slices, out=np.full((C, C + 1), np.nan), where=slices > 0)

def sides(table: np.ndarray, classes: ClassMap) -> list[dict]:
    "For each lateral structure that occurs: how much of it was called by its own side's name, and by the other's."
    rows = [(a, b) for pair in classes.pairs for a, b in (pair, pair[::-1]) if not np.isnan(table[a - 1, 0])]
    return [{"id": a, "name": classes.name(a), "own": table[a - 1, a], "other": table[a - 1, b], "other_name": classes.name(b)} for a, b in rows]


# %%
lr = ClassMap.from_names(["lung_left", "lung_right", "heart"])
t, p = np.zeros((2, 1, 4, 5), np.uint8)
t[0, :, 0], t[0, :, 4], p[0, :, 0], p[0, :3, 4] = 1, 2, 1, 1   # a right lung, three quarters of it called left
table = confusion(p, t, 3)
test_eq(table[0], [0, 1, 0, 0]); test_eq(table[1], [.25, .75, 0, 0]); assert np.isnan(table[2]).all()
for r in sides(table, lr): print(f"{r['name']}: {r['own']:.0%} called so, {r['other']:.0%} called {r['other_name']}")


# %% [markdown]
# ## The slices in little space
#
# A CT slice of 256×256 as PNG takes some 40 kB, 300 of them 12 MB. WebP brings one to 6 kB and nobody sees the difference under a coloured overlay. Masks must be exact, but they are nearly all long runs of one number, so plain zlib brings truth and prediction together to two or three kB. The browser
# unpacks them (`DecompressionStream`) and colours them on a canvas, so that the overlay can be faded and single structures picked out.
#
# Which slices? All, if they are few enough; else a fair sample of best, worst and in between.
#
# Names need care. A file name may hold a patient's name, so only names that are plain numbers are shown; any other slice is called by its place in the list.

# %%
#| export
def picture(image: np.ndarray, quality: int = 60) -> str:
    "A grey image uint8 [H, W] as WebP in base64."
    f = io.BytesIO()
    Image.fromarray(image).save(f, "WEBP", quality=quality, method=6)
    return base64.b64encode(f.getvalue()).decode()

def pack(*masks: np.ndarray) -> str:
    "uint8 masks one after the other, compressed, in base64."
    return base64.b64encode(zlib.compress(np.stack(masks).tobytes(), 9)).decode()

def safe_name(name: str, i: int) -> str:
    "The file's name if it is a plain number, else its place in the list."
    return name if re.fullmatch(r"\d{1,9}\.png", name) else f"slice {i + 1}"

def spread(score: np.ndarray, most: int) -> np.ndarray:
    "At most `most` positions, worst first, evenly over the ranks of `score`; NaN comes last."
    order = np.argsort(score, kind="stable")
    return order if len(order) <= most else order[np.linspace(0, len(order) - 1, most).round().astype(int)]


# %%
#| export
def pack_slices(
    slices: SliceSet,
    pred: np.ndarray, # uint8 [N, H, W]
    most: int = 300,
    truth: bool = True, # False: there is none, the masks are not looked at
) -> list[dict]: # for the page: name, image, masks, known classes, cells, dice
    "Slices as the page wants them, worst first."
    known = slices.known if truth else np.zeros_like(slices.known)
    both, a, b = overlaps(pred, slices.masks*np.uint8(truth), len(slices.classes))
    with np.errstate(invalid="ignore", divide="ignore"): dice = np.where(known, 2*both/(a + b), np.nan)
    counted = ~np.isnan(dice)
    score = np.divide(np.nansum(dice, 1), counted.sum(1), out=np.full(len(dice), np.nan), where=counted.any(1))
    def cells(n):
        state = lambda c: "unknown" if not known[n, c] else "missed" if not a[n, c] else "invented" if not b[n, c] else "found"
        return [[int(c) + 1, state(c), None if np.isnan(dice[n, c]) else round(float(dice[n, c]), 3)] for c in np.flatnonzero((a + b)[n] > 0)]
    return [{"name": safe_name(slices.names[n], n), "image": picture(slices.images[n]), "masks": pack(slices.masks[n]*np.uint8(truth), pred[n]),
             "known": (np.flatnonzero(known[n]) + 1).tolist(), "cells": cells(n), "dice": None if np.isnan(score[n]) else round(float(score[n]), 4)}
            for n in spread(score, most)]


# %%
sample = phantom_slices(8, size=256, seed=2500)
nearly = np.roll(sample.masks, 3, axis=2)
packed = pack_slices(sample, nearly)
test_eq([s["dice"] for s in packed], sorted(s["dice"] for s in packed))
first = packed[0]
i = sample.names.index(first["name"])
test_eq(np.frombuffer(zlib.decompress(base64.b64decode(first["masks"])), np.uint8).reshape(2, 256, 256), np.stack([sample.masks[i], nearly[i]]))
test_eq(first["dice"], round(float(np.nanmean(dice_table(nearly, sample.masks, 54)[i])), 4))
print(f"a slice of 256x256: {len(first['image'])/1e3:.1f} kB image, {len(first['masks'])/1e3:.1f} kB truth and prediction, in base64")
test_eq([safe_name("17.png", 3), safe_name("Smith_John_1954.png", 3)], ["17.png", "slice 4"])
test_eq(spread(np.array([.5, .1, np.nan, .9, .2]), 3), [1, 0, 2])


# %% [markdown]
# ## Curves
#
# Figures are SVG, drawn by matplotlib and given the page's own text colour, so that they are readable on a dark screen as well.

# %%
#| export
def svg(fig, salt: str) -> Markup:
    "A matplotlib figure as SVG without metadata, in the colour of the text around it."
    import matplotlib as mpl, matplotlib.pyplot as plt
    f = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}): fig.savefig(f, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(fig)
    text = f.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg"):], flags=re.S)
    return Markup(re.sub(r' id="\w+_\d+"', "", text.replace("#000000", "currentColor")))

def curves(run: Run) -> Markup:
    "Loss and held-out Dice over the epochs."
    return svg(plot_curves(run.read_history()), "curves")

def kept_and_rejected(table: pd.DataFrame, score: str):
    "How the pseudo-labelled slices are spread over the score they were ranked by."
    import matplotlib.pyplot as plt
    fig, ax = plt.subplots(figsize=(6, 2.4), layout="constrained")
    bins = np.linspace(table[score].min(), table[score].max() + 1e-9, 31)
    for kept, colour, label in ((1, "C0", "kept"), (0, "C1", "rejected")): ax.hist(table[score][table.kept == kept], bins, color=colour, alpha=.75, label=label)
    ax.set(xlabel=f"confidence ({score})", ylabel="slices"); ax.legend(frameon=False)
    return fig


# %% [markdown]
# ## The page
#
# Style, text and script are three pieces, put together by [Jinja](https://jinja.palletsprojects.com) with autoescaping on: whatever comes from a recipe, a class name or a file name is text and stays text. On top of that the page forbids itself to load anything
# (`Content-Security-Policy`).
#
# ### Style
#
# Colours follow the reader's light or dark setting. The two panels of a slice stay side by side on a phone, where one thumb must reach slider and buttons.

# %%
#| export
STYLE = """
:root { color-scheme: light dark; --ink: #1d2733; --soft: #5b6875; --line: #d9dfe5; --page: #fff; --card: #f5f7f9; --accent: #0b7285; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e8ed; --soft: #9aa7b4; --line: #34404b; --page: #12171c; --card: #1b2229; --accent: #4fb3c4; --bad: #f2867d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem clamp(.8rem, 3vw, 2rem) 4rem; max-width: 68rem; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: .4rem 0 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; padding-top: .4rem; border-top: 1px solid var(--line); }
p { margin: .5rem 0; max-width: 46rem; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .6rem 0; font-size: .95rem; }
a { color: var(--accent); }
code { white-space: nowrap; }
dl.facts { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0; padding: 0; }
dl.facts div { background: var(--card); border-radius: .5rem; padding: .5rem .9rem; }
dl.facts dt { color: var(--soft); font-size: .82rem; }
dl.facts dd { margin: 0; font-size: 1.15rem; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .18rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
tr.silent td, .bad { color: var(--bad); }
.dot { display: inline-block; width: .75em; height: .75em; border-radius: 2px; margin-right: .45em; background: var(--c); }
.bar { display: inline-block; width: 5rem; height: .7em; margin-right: .6em; background: linear-gradient(to right, var(--accent) calc(var(--v)*100%), var(--line) 0); }
table.heat th.turn { writing-mode: vertical-rl; transform: rotate(180deg); font-weight: 400; padding: .3rem 0; }
table.heat td:not(:first-child) { min-width: 2.3rem; padding: .18rem .2rem; text-align: center; background: color-mix(in srgb, var(--accent) calc(var(--v, 0)*65%), transparent); }
.scroll.small svg { min-width: 0; max-width: 22rem; }
.scroll.middle svg { min-width: 0; max-width: 34rem; }
.scroll svg { display: block; width: 100%; min-width: 30rem; max-width: 46rem; height: auto; }
svg text { fill: currentColor; }
table.plain td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
td.wrap { white-space: normal; min-width: 8rem; }
"""

# %%
#| export
STYLE += """
.controls { display: flex; flex-wrap: wrap; gap: .5rem 1.2rem; align-items: end; margin: .8rem 0; }
.controls label { display: grid; gap: .1rem; font-size: .85rem; color: var(--soft); }
select, button, input { font: inherit; color: inherit; accent-color: var(--accent); }
select, button { background: var(--card); border: 1px solid var(--line); border-radius: .4rem; padding: .25rem .5rem; max-width: 15rem; }
.flip { display: flex; gap: .5rem; align-items: center; max-width: 52rem; }
.flip button { font-size: 1.2rem; min-width: 3rem; }
.flip input { flex: 1; min-width: 0; }
.panels { display: grid; grid-template-columns: 1fr 1fr; gap: .6rem; max-width: 52rem; }
.panels figure { margin: 0; }
.panels canvas { width: 100%; image-rendering: pixelated; background: #000; border-radius: .3rem; display: block; }
#slice { font-weight: 600; margin: .4rem 0; min-height: 1.6em; }
#cells { list-style: none; padding: 0; margin: .4rem 0; display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .1rem .8rem; font-size: .92rem; min-height: 3.6rem; align-content: start; }
#ends { display: flex; gap: .4rem; overflow-x: auto; padding: .3rem 0; }
#ends button { padding: .2rem; line-height: 1.2; font-size: .78rem; }
#ends canvas { width: 5rem; display: block; border-radius: .2rem; image-rendering: pixelated; }
kbd { border: 1px solid var(--line); border-bottom-width: 2px; border-radius: .25rem; padding: 0 .35em; font-size: .85em; }
@media (prefers-reduced-motion: no-preference) { html { scroll-behavior: smooth; } }
"""

# %% [markdown]
# ### Text
#
# Small macros first: a table of records, a class with its colour.

# %%
#| export
MACROS = """
{% macro number(v, digits=3) %}{% if v is none or v != v %}–{% elif v is float %}{{ ("%." ~ digits ~ "f")|format(v) }}{% else %}{{ v }}{% endif %}{% endmacro %}
{% macro structure(id) %}<span class="dot" style="--c: {{ colours[id] }}"></span>{{ names[id] }}{% endmacro %}
{% macro interval(v) %}{{ number(v[0]) }} … {{ number(v[1]) }}{% endmacro %}
{% macro head(title) %}<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{{ title }}</title><style>{{ style }}</style></head>{% endmacro %}
"""

PAGE_TOP = """{{ head("ctseg: " ~ run) }}<body>
<header><h1>{{ run }}</h1><p class="soft">{{ recipe_name }}{% if about %}: {{ about }}{% endif %}</p>
<nav>{% for id, text in places %}<a href="#{{ id }}">{{ text }}</a>{% endfor %}</nav></header>
<main>
{% if score %}
<dl class="facts">
<div><dt>Dice</dt><dd>{{ number(score.dice) }}</dd></div>
<div><dt>95 % interval</dt><dd>{{ interval(score.interval) }}</dd></div>
<div><dt>slices, groups</dt><dd>{{ score.images }}, {{ score.groups }}</dd></div>
<div><dt>invented, missed</dt><dd>{{ score.invented }}, {{ score.missed }}</dd></div>
<div><dt>silent classes</dt><dd{% if score.silent %} class="bad"{% endif %}>{{ score.silent|length }} of {{ names|length - 1 }}</dd></div>
<div><dt>decision</dt><dd>{{ rule }}</dd></div>
</dl>
<p>Scored on {{ scored_on }}{% if score.cells_examined is defined %}, on the {{ score.cells_examined }} cells (slice, structure) that people examined; what was predicted elsewhere can be neither right nor wrong{% endif %}. {% if kind %}The decision rule was chosen on these very slices, so the score is a little kind; the test slices have no part in it (<code>--split test</code>). {% endif %}The interval is a bootstrap over groups of related slices; it does not contain the luck of training.</p>
{% if score.silent %}<p class="bad">Never drawn though it was there: {{ score.silent|join(", ") }}.</p>{% endif %}
{% else %}<p>No slices were given, so this page shows the training only. <code>ctseg report RUN --data FOLDER</code> scores and shows the slices that the run held out.</p>{% endif %}
"""

# %%
#| export
PAGE_SLICES = """
{% if sets %}
<section id="slices"><h2>Slices</h2>
<p>Striped is what nobody can judge: predicted here, but the structure was not examined on the slice. <kbd>←</kbd> <kbd>→</kbd> flip through, <kbd>space</kbd> hides the overlay, <kbd>Home</kbd> <kbd>End</kbd> jump.</p>
<div id="ends" aria-label="the worst and the best slices"></div>
<div class="controls">
<label>show <select id="set"></select></label>
<label>order <select id="order"><option value="worst">worst first</option><option value="best">best first</option></select></label>
<label>structure <select id="only"><option value="0">all</option></select></label>
<label>overlay <input id="fade" type="range" min="0" max="100" value="60"></label>
</div>
<div class="panels">
<figure><canvas id="left"></canvas><figcaption id="leftname">truth</figcaption></figure>
<figure><canvas id="right"></canvas><figcaption>prediction</figcaption></figure>
</div>
<p id="slice" aria-live="polite"></p>
<div class="flip"><button id="back" aria-label="previous slice">‹</button><input id="place" type="range" min="0" value="0" aria-label="slice"><button id="next" aria-label="next slice">›</button></div>
<ul id="cells"></ul>
</section>
{% endif %}
{% if rows %}
<section id="classes"><h2>Structures</h2>
<p class="soft">Over the slices on which a structure was examined. <em>Dice</em> counts an invention as 0, <em>where present</em> leaves inventions out.</p>
<div class="scroll"><table>
<thead><tr><th>structure</th><th>slices</th><th>Dice</th><th>where present</th><th>absent</th><th>invented</th><th>missed</th><th></th></tr></thead><tbody>
{% for r in rows %}<tr{% if r.silent %} class="silent"{% endif %}><td>{{ structure(r.id) }}</td><td>{{ r.support }}</td>
<td>{% if r.dice is not none %}<span class="bar" style="--v: {{ r.dice }}"></span>{{ number(r.dice) }}{% else %}–{% endif %}</td>
<td>{{ number(r.dice_present) }}</td><td>{{ r.absent }}</td><td>{{ r.invented }}</td><td>{{ r.missed }}</td>
<td>{{ "silent" if r.silent else "few slices" if r.unreliable and r.support else "" }}</td></tr>
{% endfor %}</tbody></table></div></section>
{% endif %}
"""

# %%
#| export
PAGE_NUMBERS = """
{% if heat %}
<section id="confusion"><h2>What is taken for what</h2>
{% if sides %}<p class="soft">Left and right: share of the pixels called by their own name, and by that of the other side</p>
<div class="scroll"><table>
<thead><tr><th>structure</th><th>own side</th><th>other side</th></tr></thead><tbody>
{% for s in sides %}<tr><td>{{ structure(s.id) }}</td><td>{{ number(s.own) }}</td><td{% if s.other > 0.05 %} class="bad"{% endif %}>{{ number(s.other) }}</td></tr>
{% endfor %}</tbody></table></div>{% endif %}
<p class="soft">Rows: true structures; columns: what their pixels were called, in percent</p>
<div class="scroll"><table class="heat">
<thead><tr><th></th>{% for c in heat.columns %}<th class="turn">{{ names[c] }}</th>{% endfor %}</tr></thead><tbody>
{% for id, row in heat.rows %}<tr><td>{{ structure(id) }}</td>{% for v in row %}<td{% if v >= 0.005 %} style="--v: {{ "%.2f"|format(v) }}"{% endif %}>{% if v >= 0.005 %}{{ (100*v)|round|int }}{% endif %}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div></section>
{% endif %}
{% if curves %}<section id="curves"><h2>Training</h2><div class="scroll">{{ curves }}</div>
{% if times %}<div class="scroll"><table><thead><tr><th>phase</th><th>epochs</th><th>minutes</th><th>seconds an epoch</th><th>on</th></tr></thead><tbody>
{% for t in times %}<tr><td>{{ t.phase }}</td><td>{{ t.epochs }}</td><td>{{ number(t.minutes, 1) }}</td><td>{{ number(t.seconds, 1) }}</td><td>{{ t.where }}</td></tr>{% endfor %}</tbody></table></div>{% endif %}</section>{% endif %}
{% if pseudo or cells %}<section id="pseudo"><h2>Pseudo-labels</h2>
{% if pseudo %}<p>Of {{ pseudo.images }} slices that nobody annotated, the teacher's answer was kept for {{ pseudo.kept }}, those of highest <em>{{ pseudo.score }}</em>, and rejected for {{ pseudo.images - pseudo.kept }}.{% if pseudo.shown %} Both are among the slices above.{% endif %}</p><div class="scroll middle">{{ pseudo.figure }}</div>{% endif %}
{% if cells %}<p class="soft">Cells (slice, structure) known from people, and those that teachers added</p>
<div class="scroll"><table>
<thead><tr>{% for k in cells[0] %}<th>{{ k }}</th>{% endfor %}</tr></thead><tbody>{% for r in cells %}<tr>{% for v in r.values() %}<td>{{ v }}</td>{% endfor %}</tr>{% endfor %}</tbody></table></div>{% endif %}</section>{% endif %}
{% if reliability %}<section id="calibration"><h2>Calibration</h2>
<p>What the network said, and how often it was so, for pairs (pixel, structure) that were examined. Temperature {{ number(temperature) }}; “after” is measured crosswise. <code>ctseg predict --calibrated</code> uses it.</p><div class="scroll small">{{ reliability }}</div></section>{% endif %}
<section id="recipe"><h2>Recipe</h2>
<p class="soft">Bold: not the default. Seed {{ seed }}; {{ data.images }} images, {{ data.labelled }} annotated; data {{ data.fingerprint }}</p>
<div class="scroll"><table class="plain"><tbody>
{% for k, v, odd in recipe %}<tr><td>{% if odd %}<strong>{{ k }}</strong>{% else %}{{ k }}{% endif %}</td><td>{% if odd %}<strong>{{ v }}</strong>{% else %}{{ v }}{% endif %}</td></tr>{% endfor %}</tbody></table></div>
<p class="soft">{% for k, v in versions.items() %}{{ k }} {{ v }}{{ " · " if not loop.last }}{% endfor %}</p></section>
</main>
{% if sets %}<script type="application/json" id="data">{{ sets }}</script><script>{{ script }}</script>{% endif %}
</body></html>
"""

# %% [markdown]
# ### Script
#
# First what a slice needs: unpack the masks, and paint a panel. Nothing is ever read back from a canvas, since browsers that guard against fingerprinting answer with noise.

# %%
#| export
SCRIPT = r"""
"use strict";
const data = JSON.parse(document.getElementById("data").textContent), {names, colours, height, width, sets} = data;
const rgb = colours.map(c => [1, 3, 5].map(i => parseInt(c.slice(i, i + 2), 16)));
const $ = id => document.getElementById(id), grain = Math.max(1, Math.round(width/64));

async function open(slice) {          // image and masks of a slice, unpacked when first looked at
  if (slice.ready) return slice;
  const image = new Image(), bytes = Uint8Array.from(atob(slice.masks), c => c.charCodeAt(0));
  image.src = "data:image/webp;base64," + slice.image;
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const both = new Uint8Array(await new Response(stream).arrayBuffer());
  await image.decode();
  return Object.assign(slice, {ready: true, picture: image, truth: both.subarray(0, height*width), pred: both.subarray(height*width)});
}

function paint(canvas, slice, side, fade, only) {
  // colours of the mask, striped where a predicted structure was not examined
  const layer = document.createElement("canvas"), known = new Set(slice.known), mask = slice[side];
  canvas.width = layer.width = width; canvas.height = layer.height = height;
  const pixels = new ImageData(width, height), grey = [200, 200, 200];
  for (let i = 0; i < mask.length; i++) {
    const c = mask[i], p = slice.pred[i], open = p && !slice.truth[i] && !known.has(p);
    const drawn = only ? (side == "pred" ? p : open ? p : c) == only : true;
    const stripe = ((i % width + Math.floor(i/width))/grain | 0) % 3 == 0;
    const colour = !drawn ? null : open ? (stripe ? (side == "pred" ? rgb[p] : grey) : null) : c ? rgb[c] : null;
    if (colour) pixels.data.set([...colour, 255], 4*i);
  }
  layer.getContext("2d").putImageData(pixels, 0, 0);
  const ctx = canvas.getContext("2d");
  ctx.globalAlpha = 1; ctx.drawImage(slice.picture, 0, 0, width, height);
  ctx.globalAlpha = fade; ctx.drawImage(layer, 0, 0);
}
"""

# %% [markdown]
# Then what the reader does: choose a set, an order, a structure; flip; fade.

# %%
#| export
SCRIPT += r"""
let list = [], place = 0, hidden = false, drawing = 0;
const fade = () => hidden ? 0 : $("fade").value/100;

function choose() {                   // the slices to flip through
  const only = +$("only").value, set = sets[+$("set").value];
  list = set.slices.filter(s => !only || s.cells.some(c => c[0] == only));
  if ($("order").value == "best") list = [...list].reverse();
  list.sort((a, b) => (a.dice == null) - (b.dice == null));      // what could not be scored comes last
  $("leftname").textContent = set.truth ? "truth" : "slice";
  $("place").max = Math.max(0, list.length - 1);
  show(0);
}

async function show(n) {
  place = Math.max(0, Math.min(n, list.length - 1)); $("place").value = place;
  const ticket = ++drawing, slice = list[place], only = +$("only").value;
  $("cells").replaceChildren();
  if (!slice) { $("slice").textContent = "no slice has it"; return; }
  await open(slice);
  if (ticket != drawing) return;      // somebody has flipped on meanwhile
  paint($("left"), slice, "truth", fade(), only); paint($("right"), slice, "pred", fade(), only);
  $("slice").textContent = `${slice.name}, ${place + 1} of ${list.length}` + (slice.dice == null ? "" : `: Dice ${slice.dice.toFixed(3)}`);
  for (const [id, state, dice] of slice.cells) {
    const item = document.createElement("li"), dot = document.createElement("span");
    dot.className = "dot"; dot.style.setProperty("--c", colours[id]);
    item.append(dot, `${names[id]}: ${state == "found" ? dice.toFixed(2) : state == "unknown" ? "not examined" : state}`);
    if (state == "missed" || state == "invented") item.className = "bad";
    $("cells").append(item);
  }
}

for (const [i, s] of sets.entries()) $("set").append(new Option(`${s.name} (${s.slices.length})`, i));
for (const id of [...new Set(sets.flatMap(s => s.slices.flatMap(x => x.cells.map(c => c[0]))))].sort((a, b) => a - b)) $("only").append(new Option(names[id], id));
for (const id of ["set", "order", "only"]) $(id).addEventListener("change", choose);
$("fade").addEventListener("input", () => { hidden = false; show(place); });
$("place").addEventListener("input", () => show(+$("place").value));
$("back").addEventListener("click", () => show(place - 1));
$("next").addEventListener("click", () => show(place + 1));
"""

# %%
#| export
SCRIPT += r"""
const moves = {ArrowLeft: () => show(place - 1), ArrowRight: () => show(place + 1), Home: () => show(0), End: () => show(list.length - 1),
               " ": () => { hidden = !hidden; show(place); }};
document.addEventListener("keydown", e => {
  if (!moves[e.key] || e.ctrlKey || e.metaKey || e.altKey || /^(INPUT|SELECT|BUTTON|A)$/.test(e.target.tagName)) return;   // those have keys of their own
  e.preventDefault(); moves[e.key]();
});

async function ends() {               // small pictures of the worst and the best
  const scored = sets[0].slices.filter(s => s.dice != null), few = scored.length < 10 ? scored : [...scored.slice(0, 5), ...scored.slice(-5)];
  for (const slice of few) {
    const button = document.createElement("button"), canvas = document.createElement("canvas");
    await open(slice); paint(canvas, slice, "pred", 0.6, 0);
    button.append(canvas, slice.dice.toFixed(2));
    button.setAttribute("aria-label", `${slice.name}, Dice ${slice.dice.toFixed(2)}`);
    button.addEventListener("click", () => { $("set").value = 0; $("only").value = 0; choose(); show(list.indexOf(slice)); });
    $("ends").append(button);
  }
}
choose(); ends();
"""


# %% [markdown]
# ## Putting it together
#
# What the run folder tells by itself: curves, times, recipe, versions, calibration. Paths of a disk have no business on the page, so of a value with slashes only the last part is shown.

# %%
#| export
def run_facts(run: Run, spec: dict) -> dict:
    "What the page says about the run itself."
    default, given = Recipe(), spec["recipe"]
    plain = lambda v: re.split(r"[/\\]", v)[-1] if isinstance(v, str) else v
    facts = dict(run=run.folder.resolve().name, recipe_name=given.get("name", "custom"), about=given.get("about", ""), seed=spec["seed"], data=spec["data"], versions=spec["versions"],
                 recipe=[(k, plain(v), v != getattr(default, k, None)) for k, v in given.items() if k not in ("name", "about")], curves=None, times=None, reliability=None, temperature=None)
    if (run/"history.csv").exists(): facts["curves"] = curves(run)
    if (run/"timings.csv").exists():
        timings = pd.read_csv(run/"timings.csv")
        if "where" not in timings: timings["where"] = ""  # a run of an older ctseg
        facts["times"] = [{"phase": p, "epochs": len(t), "minutes": float(t.seconds.sum()/60), "seconds": float(t.seconds.median()), "where": "; ".join(t["where"].dropna().unique())}
                          for p, t in timings.groupby("phase", sort=False)]
    found = (read_json(run/"metrics.json") if (run/"metrics.json").exists() else {}).get("calibration")
    if found and (run/"reliability.csv").exists():
        points = {f"points {when}": rows[["said", "was", "pairs"]].values.tolist() for when, rows in pd.read_csv(run/"reliability.csv").groupby("when")}
        facts |= {"temperature": found["temperature"], "reliability": svg(plot_reliability(found | points), "reliability")}
    return facts


# %% [markdown]
# What the slices tell: score, table of classes, confusion.

# %%
#| export
def slice_facts(slices: SliceSet, pred: np.ndarray) -> dict:
    "Score, per-class rows, confusion and sides of the predictions for `slices`."
    C = len(slices.classes)
    score = evaluate(slices.masks, pred, slices.classes, slices.known, slices.groups)
    table = confusion(pred, slices.masks, C)
    there = np.flatnonzero(~np.isnan(table[:, 0])) + 1
    columns = [0, *(c for c in range(1, C + 1) if c in there or (table[there - 1, c] >= 0.01).any())]
    rows = sorted(score["per_class"], key=lambda r: (not r["support"], r["id"]))
    return dict(score=score, rows=rows, sides=sides(table, slices.classes), heat={"columns": columns, "rows": [(int(i), table[i - 1, columns].tolist()) for i in there]})


# %% [markdown]
# What teachers said, if there was one: the original method keeps or rejects whole slices, [self-training](self_training.html) accepts cells.

# %%
#| export
def pseudo_facts(run: Run, spec: dict, data: SliceSet|None, most: int) -> tuple[dict, list]:
    "Pseudo-labels kept and rejected: numbers, a figure, and the slices themselves where the run keeps what the teacher drew."
    facts, sets = dict(pseudo=None, cells=None), []
    if (run/"pseudo_cells.csv").exists(): facts["cells"] = pd.read_csv(run/"pseudo_cells.csv").to_dict("records")
    if not (run/"pseudo_labels.csv").exists(): return facts, sets
    table, score = pd.read_csv(run/"pseudo_labels.csv"), spec["recipe"].get("confidence", "sdc")
    if data is not None and (run/"pseudo_labels.npz").exists():
        said = run.read_pseudo()
        at = {n: i for i, n in enumerate(data.names)}
        for kept, name in ((True, "pseudo-labels kept"), (False, "pseudo-labels rejected")):
            of = np.flatnonzero(said["kept"] == kept)
            of = of[spread(table[score].to_numpy()[of], most)]
            if len(of): sets.append({"name": name, "truth": False, "slices": pack_slices(data[[at[str(said["names"][i])] for i in of]], said["labels"][of], most, truth=False)})
    facts["pseudo"] = {"images": len(table), "kept": int(table.kept.sum()), "score": score, "figure": svg(kept_and_rejected(table, score), "pseudo"), "shown": bool(sets)}
    return facts, sets


# %%
#| export
def render(template: str, classes: ClassMap, **facts) -> str:
    "A page from one of the templates; everything is escaped except what is `Markup`."
    env = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    colours = ["#%02x%02x%02x" % tuple(c) for c in classes.colours]
    return env.from_string(MACROS + template).render(names=["background", *classes.names], colours=colours, style=Markup(STYLE), script=Markup(SCRIPT), **facts).lstrip()

def page_data(sets: list, slices: SliceSet) -> Markup:
    "The slices as JSON inside a script element: no `<` can end it early."
    h, w = slices.images.shape[1:]
    colours = ["#%02x%02x%02x" % tuple(c) for c in slices.classes.colours]
    return Markup(json.dumps(dict(names=["background", *slices.classes.names], colours=colours, height=h, width=w, sets=sets), separators=(",", ":")).replace("<", "\\u003c"))


# %%
#| export
def report(
    run, # a run folder
    data=None, # the challenge folder it was trained on; None: only what the run folder holds
    split: str = "held-out", # or "test"
    out=None, # the page; default: report.html in the run folder
    most: int = 300, # slices on the page
    annotated: str = "json",
    plan: DevicePlan|str|None = None, # see `load_predictor`
    batch_size: int = 16,
) -> Path: # where it was written
    "Write the page of one run. Without `data` the run may still be in its first phase."
    run = Run(run)
    spec = run_spec(run, weights=data is not None)
    refuse_folder(out)
    classes = ClassMap.from_names(list(spec["classes"].values()))
    facts = run_facts(run, spec) | dict(score=None, rows=None, heat=None, sides=None, sets=None, rule=None, scored_on=None, kind=False)
    pseudo, extra = pseudo_facts(run, spec, None, 0) if data is None else (None, [])
    if data is not None:
        none = split == "test" and not isinstance(data, SliceSet) and not (Path(data)/"train-images").is_dir()  # a folder may hold a test alone
        train = data if isinstance(data, SliceSet) else None if none else read_challenge(data, "train", annotated)
        own = train if train is not None and train.fingerprint() == spec["data"]["fingerprint"] else None  # another folder may have slices of the same names
        slices = scored_slices(run, train if split == "held-out" else data, split, annotated)
        predictor = prepare(run.folder, plan)
        pred = predict_masks(predictor, slices.images, batch_size=batch_size)
        pseudo, extra = pseudo_facts(run, spec, own, max(1, most//6))
        what = "test slices" if split == "test" else "annotated slices that this run held out"
        sets = [{"name": what if split == "test" else "held-out slices", "truth": True, "slices": pack_slices(slices, pred, max(1, most - sum(len(s["slices"]) for s in extra)))}]
        facts |= slice_facts(slices, pred) | dict(sets=page_data(sets + extra, slices), rule=str(predictor.rule), scored_on=f"{len(slices)} {what}",
                                                  kind=split == "held-out" and predictor.rule != Rule())
    facts |= pseudo
    places = [("slices", "slices", "sets"), ("classes", "structures", "rows"), ("confusion", "confusion", "heat"), ("curves", "training", "curves"), ("calibration", "calibration", "reliability")]
    facts["places"] = [(i, t) for i, t, k in places if facts[k]] + ([("pseudo", "pseudo-labels")] if pseudo["pseudo"] or pseudo["cells"] else []) + [("recipe", "recipe")]
    with atomic_path(out := Path(out or run/"report.html")) as tmp:
        tmp.write_text(render(PAGE_TOP + PAGE_SLICES + PAGE_NUMBERS, classes, **facts), encoding="utf-8")
    return out


# %% [markdown]
# ## Several runs
#
# Is B better than A? Two intervals side by side are the wrong answer: a hard patient weighs on both runs. The difference is taken slice by slice, and its interval comes from drawing whole groups of slices, [the same for both](metrics.html#how-far-to-trust-it). Only slices that **all** the runs held out count.
#
# One advantage must be taken out: a run whose rule was chosen on those slices is judged too kindly, one that uses plain argmax is not. So wherever a rule was chosen, the page compares the runs by argmax as well, from the same probabilities, and says which of the two is fair.

# %%
#| export
def common_slices(runs: list[Run], data, split: str = "held-out", annotated: str = "json") -> SliceSet:
    "The slices with truth that none of the runs has trained on."
    slices = data if isinstance(data, SliceSet) else read_challenge(data, "test" if split == "test" else "train", annotated)
    found = [scored_slices(r, slices, split, annotated) for r in runs]
    names = set.intersection(*(set(s.names) for s in found))
    if not names: raise InputError("no slice was held out by all of these runs; compare them with --split test")
    return found[0][np.isin(found[0].names, list(names))]

def compare(runs: list[Run], slices: SliceSet, plan: DevicePlan|str|None = None, batch_size: int = 16) -> list[dict]:
    "A record for each run: score with interval, by its rule and by argmax, and the difference to the first run with its paired interval."
    known, C, records, first = slices.known, len(slices.classes), [], None
    for run, name in zip(runs, run_names(runs)):
        predictor = prepare(run.folder, plan)
        preds = predict_masks(predictor, slices.images, [predictor.rule, Rule()], batch_size)
        tables = [np.where(known, dice_table(pred, slices.masks, C), np.nan) for pred in preds]
        first = first or tables
        rows, score = per_class(preds[0], slices.masks, slices.classes, known), bootstrap_mean(tables[0], slices.groups)
        own, plain = (paired_bootstrap(t, f, slices.groups) for t, f in zip(tables, first))
        records.append({"run": name, "recipe": run_spec(run)["recipe"].get("name", "custom"), "rule": str(predictor.rule), "chosen": predictor.rule != Rule(), "dice": score["mean"], "interval": (score["low"], score["high"]),
                        "difference": own["difference"], "paired": (own["low"], own["high"]), "better": own["p_better"],
                        "argmax": mean_dice(tables[1]), "argmax_difference": plain["difference"], "argmax_paired": (plain["low"], plain["high"]),
                        "invented": int(rows.invented.sum()), "missed": int(rows.missed.sum()),
                        "silent": list(rows.index[rows.silent]), "per_class": [None if np.isnan(v) else float(v) for v in rows.dice]})
    return records

def run_names(runs: list[Run]) -> list[str]:
    "The folders' names; of two that share one, as much of their paths as tells them apart."
    paths = [r.folder.resolve() for r in runs]
    def name(p):
        ends = ("/".join(p.parts[-k:]) for k in range(1, len(p.parts)))
        return next((end for end in ends if not any(q != p and f"/{q.as_posix()}".endswith(f"/{end}") for q in paths)), str(p))
    return [name(p) for p in paths]


# %%
test_eq(run_names([Run("a/x"), Run("b/x"), Run("b/y"), Run("a/x")]), ["a/x", "b/x", "y", "a/x"])

# %%
#| export
COMPARISON = """{{ head("ctseg: " ~ records|length ~ " runs") }}<body>
<header><h1>{{ records|length }} runs compared</h1></header><main>
<p>{{ scored_on }}, {{ groups }} groups of related slices. Differences are to the first run, slice by slice; intervals (95 %) come from drawing groups, the same for both runs. They hold the choice of slices, not the luck of training: for that, compare several seeds.</p>
{% if by_argmax and held_out %}<p>A rule that was chosen on a run's held-out slices has seen its answer: the score by it is a little kind, and a run that uses plain argmax has no such advantage. Here the fair comparison is the one by argmax; on test slices (<code>--split test</code>) both are.</p>{% endif %}
<div class="scroll"><table><thead><tr><th>run</th><th>Dice [95 %]</th><th>difference [95 %]</th><th>better in</th>{% if by_argmax %}<th>Dice by argmax</th><th>difference by argmax [95 %]</th>{% endif %}<th>invented</th><th>missed</th><th>silent</th><th>decision</th></tr></thead><tbody>
{% for r in records %}<tr><td>{{ r.run }}</td><td>{{ "%.3f [%.3f, %.3f]"|format(r.dice, *r.interval) }}</td>
{% if loop.first %}<td>–</td><td>–</td>{% else %}<td>{{ "%+.3f [%+.3f, %+.3f]"|format(r.difference, *r.paired) }}</td><td>{{ "%.0f"|format(100*r.better) }} % of draws</td>{% endif %}
{% if by_argmax %}<td>{{ "%.3f"|format(r.argmax) }}</td><td>{% if loop.first %}–{% else %}{{ "%+.3f [%+.3f, %+.3f]"|format(r.argmax_difference, *r.argmax_paired) }}{% endif %}</td>{% endif %}
<td>{{ r.invented }}</td><td>{{ r.missed }}</td><td class="wrap{{ " bad" if r.silent }}">{{ r.silent|join(", ") or "none" }}</td><td>{{ r.rule }}</td></tr>
{% endfor %}</tbody></table></div>
<h2>Structures</h2>
<p class="soft">Dice; an invention counts 0</p>
<div class="scroll"><table><thead><tr><th>structure</th>{% for r in records %}<th>{{ r.run }}</th>{% endfor %}</tr></thead><tbody>
{% for c in scored %}<tr><td>{{ structure(c + 1) }}</td>{% for r in records %}<td><span class="bar" style="--v: {{ r.per_class[c] or 0 }}"></span>{{ number(r.per_class[c]) }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
<h2>What was done differently</h2>
<div class="scroll"><table><thead><tr><th>field</th>{% for r in records %}<th>{{ r.run }}</th>{% endfor %}</tr></thead><tbody>
{% for k, values in settings %}<tr><td>{{ k }}</td>{% for v in values %}<td>{{ v }}</td>{% endfor %}</tr>{% else %}<tr><td>nothing</td></tr>{% endfor %}</tbody></table></div>
</main></body></html>
"""


# %%
#| export
def report_comparison(
    runs, # run folders, the first is what the others are compared with
    data, # the challenge folder they were trained on
    split: str = "held-out", # slices that all of them held out; or "test"
    out=None, # the page; default: comparison.html in the first run's folder
    annotated: str = "json",
    plan: DevicePlan|str|None = None, # see `load_predictor`
    batch_size: int = 16,
) -> tuple[Path, list[dict]]: # where it was written; a record for each run
    "Write the page that compares several runs."
    runs = [Run(r) for r in runs]
    specs = [run_spec(r) for r in runs]
    if data is None: raise InputError("comparing runs needs slices to score them on: give --data FOLDER")
    refuse_folder(out)
    slices = common_slices(runs, data, split, annotated)
    records = compare(runs, slices, plan, batch_size)
    same = lambda k: len({json.dumps(s["recipe"].get(k)) for s in specs}) == 1
    fields = [("seed", [s["seed"] for s in specs])] + [(k, [s["recipe"].get(k, "–") for s in specs]) for k in specs[0]["recipe"] if k not in ("about", "weights") and not same(k)]
    what = f"{len(slices)} " + ("test slices" if split == "test" else "annotated slices that all of them held out")
    scored = [c for c in range(len(slices.classes)) if any(r["per_class"][c] is not None for r in records)]
    page = render(COMPARISON, slices.classes, records=records, scored_on=what, groups=len(np.unique(slices.groups)), scored=scored, settings=fields,
                  by_argmax=any(r["chosen"] for r in records), held_out=split == "held-out")
    with atomic_path(out := Path(out or runs[0]/"comparison.html")) as tmp: tmp.write_text(page, encoding="utf-8")
    return out, records


# %% [markdown]
# ## A page to try
#
# A torso of four ellipses, three structures examined on each annotated slice, and the [teacher–student](teacher_student.html) method, small enough to train while you read. The page below is the real one: click into it and use the arrow keys.

# %%
def torso(n=60, size=48, seed=0):
    "Slices with liver, spleen and two kidneys in noise; the last third is not annotated."
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[:size, :size]/size - .5
    organs = [(-.1, -.18, .17, .14, 140), (-.1, .22, .1, .07, 140), (.12, .15, .08, .05, 170), (.12, -.15, .08, .05, 170)]
    images, masks = np.zeros((n, size, size)), np.zeros((n, size, size), np.uint8)
    for image, mask in zip(images, masks):
        image[(y/.4)**2 + (x/.45)**2 < 1] = 95
        for c, (cy, cx, ry, rx, grey) in enumerate(organs, 1):
            if rng.random() < .25: continue
            dy, dx, k = *rng.normal(0, .02, 2), rng.uniform(.8, 1.2)
            inside = ((y - cy - dy)/(ry*k))**2 + ((x - cx - dx)/(rx*k))**2 < 1
            image[inside], mask[inside] = grey, c
        image += rng.normal(0, 16, image.shape)
    known = rng.permuted(np.tile([True, True, True, False], (n, 1)), axis=1) & (np.arange(n) < 2*n//3)[:, None]
    masks *= np.c_[np.ones(n, bool), known][np.arange(n)[:, None, None], masks]
    names = ClassMap.from_names(["liver", "spleen", "kidney_left", "kidney_right"])
    return SliceSet(images.clip(0, 255).astype(np.uint8), masks, known, [f"{i}.png" for i in range(n)], np.arange(n)//2, names)

slices = torso()
recipe = Recipe("toy", "a torso of ellipses", "teacher-student", loss="masked", width=8, epochs=12, batch_size=8, lr=5e-3, folds=4, keep=0.5)
keep = tempfile.TemporaryDirectory()
run = fit(slices, recipe, Path(keep.name)/"torso", device="cpu", progress=False)
page = report(run.folder, slices).read_text()

# %%
#| echo: false
from html import escape
from IPython.display import display
display({"text/html": f'<iframe title="a report" style="width: 100%; height: 46rem; border: 1px solid #8884" srcdoc="{escape(page)}"></iframe>'}, raw=True)

# %% [markdown]
# What must not be on it is not on it: no address to load anything from, no folder of this machine. And a class name that tries to be a script stays a name.

# %%
text = re.sub(r'<script type="application/json".*?</script>|<svg.*?</svg>', "", page, flags=re.S)
assert not re.search(r"https?://|src=(?!\")|@import|url\(", text) and keep.name not in page
assert "Content-Security-Policy" in page and len(page) < 400_000
rude = ClassMap(["</script><b>liver", "spleen", "kidney_left", "kidney_right"])
assert "<b>liver" not in render(COMPARISON, rude, records=[], scored_on="", groups=0, scored=[0], settings=[], by_argmax=True, held_out=True)
assert "</script>" not in page_data([], replace(slices, classes=rude))
print(f"{len(page)/1e3:.0f} kB")

# %%
other = fit(slices, replace(recipe, name="supervised", method="supervised"), Path(keep.name)/"supervised", device="cpu", progress=False)
path, records = report_comparison([run.folder, other.folder], slices)
pd.DataFrame(records)[["run", "rule", "dice", "difference", "paired", "argmax", "argmax_difference", "argmax_paired", "invented", "missed", "silent"]].round(3)

# %%
#| hide
test_eq(records[0]["difference"], 0)
for wrong in [dict(data=None), dict(data=slices[:40]), dict(data=slices, split="tset")]:
    try: report_comparison([run.folder, other.folder], **wrong)
    except InputError as e: print(str(e).replace(keep.name, "…"))
keep.cleanup()

# %%
#| hide
import nbdev; nbdev.nbdev_export()
