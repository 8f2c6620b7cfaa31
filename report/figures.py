"""The figures of REPORT.pdf that show data, as SVG; text stays text and is set in the report's own font. The diagrams are drawn in report.typ."""
import warnings
from pathlib import Path

import matplotlib
matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ctseg.data import read_challenge
from ctseg.metrics import mean_dice
from measured import RESULTS, ROOT, chosen, history, load

COLUMN, PAGE = 3.31, 6.85  # widths in inches
STATES = {"unknown": "#e9edf0", "absent": "#9db4c8", "present": "#0b7285"}
INK, ACCENT, SOFT = "#1f2933", "#b3261e", "#7b8794"
LINES = ["#0b7285", "#c77700", "#b3261e", "#5b3a8c", "#5a7d2b", "#7b8794", "#1f2933"]
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "ctseg", "font.family": ["Libertinus Serif", "STIXGeneral"], "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8,
         "xtick.labelsize": 7.5, "ytick.labelsize": 7.5, "legend.fontsize": 7.5, "axes.linewidth": .5, "xtick.major.width": .5, "ytick.major.width": .5, "xtick.major.size": 2.5,
         "ytick.major.size": 2.5, "axes.spines.top": False, "axes.spines.right": False, "hatch.linewidth": .5, "legend.frameon": False, "text.color": INK, "axes.labelcolor": INK,
         "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.unicode_minus": True}
NAMES = {"seed-attunet": "original: Dice only", "masked": "masked sigmoid", "marginal": "marginal softmax", "marginal-image": "marginal, Dice per image", "masked-image": "masked, Dice per image",
         "masked-nopixel": "masked, no per-pixel known", "ce-dice-zeros": "CE + Dice, unknown = background"}
PHASES = {"seed-teacher-student": "teacher, then student", "seed-pretrain-finetune": "teacher, pretrain, fine-tune"}


def show(ax, image, mask=None, colours=None, title=""):
    "A slice, with a label map over it."
    grey = np.repeat(image[..., None], 3, -1)
    ax.imshow(grey if mask is None else np.where((mask > 0)[..., None], .3*grey + .7*colours[mask], grey).astype(np.uint8), interpolation="nearest")
    ax.set_title(title, pad=3); ax.axis("off")


def states():
    "A phantom slice as it is, as it is written down, and the table of what is known of the sample."
    train, test = (read_challenge(ROOT/"data_sample", s, cache=False) for s in ("train", "test"))
    i = int(test.present.sum(1).argmax())
    image, truth, colours = test.images[i], test.masks[i], test.classes.colours
    looked_for = np.random.default_rng(1).permutation(np.arange(1, len(test.classes) + 1))[:len(test.classes)//2]
    written = np.where(np.isin(truth, looked_for), truth, 0)
    fig, ax = plt.subplots(1, 4, figsize=(PAGE, 1.95), layout="constrained", width_ratios=[1, 1, 1, 1.5])
    for a, m, t in zip(ax, (None, truth, written), ("(a) a slice", "(b) what is there", "(c) what is written down")): show(a, image, m, colours, t)
    ax[2].contourf((truth > 0) & (written == 0), levels=[.5, 1.5], colors="none", hatches=["////"]).set(edgecolor="white", linewidth=0)
    cells = np.where(~train.known, 0, np.where(train.present, 2, 1))
    ax[3].imshow(cells, cmap=ListedColormap(list(STATES.values())), aspect="auto", interpolation="nearest")
    ax[3].set(xlabel="structure", ylabel="slice", xticks=[0, 17, 35, 53], xticklabels=[1, 18, 36, 54], yticks=[0, 9, 23], yticklabels=[1, 10, 24])
    ax[3].set_title("(d) the state of every cell", pad=3)
    ax[3].legend(handles=[Patch(color=c, label=n) for n, c in reversed(STATES.items())], loc="lower right", fontsize=6.5, frameon=True, facecolor="white", edgecolor="none", framealpha=.9, handlelength=1)
    return fig

def scores(t):
    "Every seed of every recipe, the mean, and its interval over patients."
    some = t["rows"][::-1]
    fig, ax = plt.subplots(figsize=(COLUMN, .23*len(some) + .5), layout="constrained")
    for y, r in enumerate(some):
        ax.plot([r["low"], r["high"]], [y, y], color=SOFT, lw=3, alpha=.35, solid_capstyle="butt")
        ax.plot(r["scores"], [y]*len(r["scores"]), "o", color=LINES[0], ms=3, mew=0, alpha=.75)
        ax.plot(r["dice"], y, "|", color=ACCENT, ms=9, mew=1.6)
    ax.set(yticks=range(len(some)), yticklabels=[f'{NAMES.get(r["name"], r["name"])} ({r["seeds"]})' for r in some], xlabel="Dice", ylim=(-.6, len(some) - .4))
    ax.tick_params(axis="y", length=0); ax.spines["left"].set_visible(False); ax.grid(axis="x", lw=.3, color="0.85"); ax.set_axisbelow(True)
    return fig

def by_class(t):
    "Dice of each class under the main recipes."
    names = [n for n in ("seed-attunet", "marginal", "masked") if n in {r["name"] for r in t["rows"]}]
    by, order = {r["name"]: r for r in t["rows"]}, np.argsort(t["support"])[::-1]
    fig, ax = plt.subplots(figsize=(COLUMN, 1.75), layout="constrained")
    for k, n in enumerate(names): ax.bar(np.arange(len(order)) + (k - (len(names) - 1)/2)*.27, np.array(by[n]["by_class"])[order], .25, color=[SOFT, "#c77700", LINES[0]][k], label=NAMES[n])
    ax.set(xticks=range(len(order)), ylabel="Dice", ylim=(0, 1))
    ax.set_xticklabels([f'{t["classes"][c].replace("_", " ").replace("spinal ", "").replace("parotid right", "parotid r.").replace("parotid left", "parotid l.")}\n{t["support"][c]}' for c in order], fontsize=6.1)
    ax.legend(ncols=3, loc="upper center", columnspacing=.8, handlelength=.8, handletextpad=.4, borderpad=0, fontsize=7); ax.tick_params(axis="x", length=0)
    return fig

def looks(results, folder):
    "Test slices with their truth and the predictions of the first seed."
    runs, path = load(folder), results/f"{folder.name}.npz"
    names = [n for n in ("seed-attunet", "marginal", "masked") if n in runs and "shown" in runs[n][min(runs[n])]]
    if not names or not path.exists(): return None
    d = np.load(path)
    seed = min(runs[names[0]])
    parts, pick = [set(np.unique(m)) - {0} for m in d["truth"]], []
    while len(pick) < 4: pick.append(max((i for i in range(len(parts)) if i not in pick), key=lambda i: (len(parts[i] - set().union(*(parts[j] for j in pick))), len(parts[i]), -i)))
    columns = [("image", None), ("truth", d["truth"]), *((n, runs[n][seed]["shown"]) for n in names)]
    fig, ax = plt.subplots(len(pick), len(columns), figsize=(COLUMN, COLUMN*len(pick)/len(columns) + .16), gridspec_kw=dict(wspace=.03, hspace=.03, left=0, right=1, top=1 - .16/(COLUMN*len(pick)/len(columns) + .16), bottom=0))
    for k, (line, i) in enumerate(zip(ax, sorted(pick))):
        box = slice(8, 58), slice(7, 57)
        for a, (name, masks) in zip(line, columns):
            show(a, d["images"][i][box], None if masks is None else masks[i][box], d["colours"], {"seed-attunet": "original"}.get(name, name) if k == 0 else "")
    return fig

def curves(supervised, semi):
    "Held-out Dice after every pass: the supervised losses, and the phases of the original's methods where they were run."
    mean = lambda runs: np.mean([[float(r["dice"]) for r in history(x)] for x in runs], 0)
    have = {n: [r for r in by.values() if history(r)] for n, by in load(supervised).items()}
    phased = {n: [r for r in by.values() if history(r)] for n, by in (load(semi) if semi else {}).items() if n in PHASES}
    phased = {n: rs for n, rs in phased.items() if rs}
    fig, ax = plt.subplots(1, 1 + bool(phased), figsize=(PAGE if phased else COLUMN, 1.75), layout="constrained", squeeze=False)
    for n, c in zip(("masked", "marginal", "seed-attunet", "ce-dice-zeros"), LINES):
        if not have.get(n): continue
        for r in have[n]: ax[0, 0].plot([float(x["dice"]) for x in history(r)], color=c, lw=.5, alpha=.4)
        ax[0, 0].plot(mean(have[n]), color=c, lw=1.4, label=NAMES[n])
    ax[0, 0].set(xlabel="pass over the annotated slices", ylabel="Dice, held-out cells", ylim=(0, None))
    ax[0, 0].legend(loc="lower right", handlelength=1.2)
    for (n, rs), c in zip(phased.items(), (LINES[0], LINES[1])):
        h, m = history(rs[0]), mean(rs)
        for r in rs: ax[0, 1].plot([float(x["dice"]) for x in history(r)], color=c, lw=.5, alpha=.4)
        ax[0, 1].plot(m, color=c, lw=1.4, label=PHASES[n])
        for k in range(1, len(h)):
            if h[k]["phase"] != h[k - 1]["phase"]: ax[0, 1].plot([k - .5]*2, [0, m.max()*1.08], color=c, lw=.7, ls=":"); ax[0, 1].text(k, m.max()*(1.1 if n == "seed-teacher-student" else 1.02), h[k]["phase"], color=c, fontsize=6.5)
    if phased: ax[0, 1].set(xlabel="pass of the run, all phases in a row", ylim=(0, None)); ax[0, 1].legend(loc="lower right", handlelength=1.2, frameon=True, facecolor="white", edgecolor="none", framealpha=.85)
    return fig

def two_metrics(rows):
    "The right and the transposed number of every run."
    fig, ax = plt.subplots(figsize=(COLUMN, 1.9), layout="constrained")
    names = list(dict.fromkeys(r["recipe"] for r in rows))
    for n, c in zip(names, LINES*3): ax.plot(*zip(*[(r["right"], r["transposed"]) for r in rows if r["recipe"] == n]), "o", ms=3.5, mew=0, color=c, label=NAMES.get(n, n))
    lo, hi = min(r["transposed"] for r in rows) - .02, max(r["right"] for r in rows) + .02
    ax.plot([lo, hi], [lo, hi], color="0.75", lw=.7, zorder=0); ax.text(lo + .012, lo + .028, "equal", color="0.55", fontsize=6.5, rotation=28)
    ax.set(xlabel="the challenge's metric", ylabel="transposed", xlim=(lo, hi)); ax.legend(fontsize=6.2, handletextpad=.1, labelspacing=.25, loc="center left", bbox_to_anchor=(1, .5))
    return fig

def methods(tables):
    "Each semi-supervised method against the supervised run that starts from the same loss, a panel a table {title: table}."
    names = {"teacher-student": "teacher–student", "pretrain-finetune": "pretrain, fine-tune", "mean-teacher": "Mean Teacher", "unimatch": "UniMatch"}
    label = lambda s, m, r: f'{names.get(m, m)}, {"Dice only" if s == "seed" else "masked"} ({r["vs"]["seeds"]})'
    pairs = {k: [(s, c["method"], c[s]) for s in ("seed", "masked") for c in t["cells"] if c[s] and c[s]["vs"] and c["method"] != "supervised"] for k, t in tables.items()}
    pairs = {k: p for k, p in pairs.items() if p}
    if not pairs: return None
    fig, axes = plt.subplots(1, len(pairs), figsize=(PAGE if len(pairs) > 1 else COLUMN, .17*max(map(len, pairs.values())) + .6), layout="constrained", squeeze=False, sharex=True)
    for ax, (title, some) in zip(axes[0], pairs.items()):
        for y, (s, m, r) in enumerate(some[::-1]):
            c, v = (SOFT if s == "seed" else LINES[0]), r["vs"]
            ax.plot([v["low"], v["high"]], [y, y], color=c, lw=3.5, alpha=.35, solid_capstyle="butt"); ax.plot(v["by_seed"], [y]*len(v["by_seed"]), "o", ms=2.6, mew=0, color=c)
            ax.plot(v["difference"], y, "|", color=ACCENT, ms=7, mew=1.5)
        ax.axvline(0, color=INK, lw=.6); ax.set(yticks=range(len(some)), yticklabels=[label(*x) for x in some[::-1]], xlabel="Dice more than supervised", ylim=(-.6, len(some) - .4)); ax.set_title(title)
        ax.tick_params(axis="y", length=0); ax.spines["left"].set_visible(False)
    return fig


def draw(data: dict, results: Path, out: Path) -> dict[str, dict]:
    "Write every figure that there is something for into `out`; {name: its file, and whether it spans the page}."
    made = {"states": lambda: states()}
    if t := data["supervised"]:
        made |= {"scores": lambda: scores(t), "by_class": lambda: by_class(t), "looks": lambda: looks(results, results/"supervised"),
                 "curves": lambda: curves(results/"supervised", next((results/k for k in ("semi800", "semi100") if data[k]), None))}
    if data["transposed"]: made["two_metrics"] = lambda: two_metrics(data["transposed"])
    semi = {f"{n} annotated slices": data[k] for k, n in (("semi100", 100), ("semi800", data["realct"]["labelled"])) if data[k]}
    if semi: made["methods"] = lambda: methods(semi)
    files = {}
    with plt.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import logging; logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
        for name, make in made.items():
            fig = make()
            if fig is None: continue
            fig.savefig(out/f"{name}.svg", metadata={"Date": None})
            files[name] = {"file": f"{name}.svg", "wide": bool(fig.get_figwidth() > COLUMN)}
            plt.close(fig)
    return files
