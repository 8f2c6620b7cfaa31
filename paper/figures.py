"""The figures of REPORT.pdf that show data, as SVG: text stays text and is set in the report's own font.
The diagrams are in report.typ."""
import logging
import warnings
from pathlib import Path

import matplotlib
matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from measured import history, load, small_phantom

from ctseg.core.style import STATE_COLOURS as STATES

COLUMN, PAGE = 3.31, 6.85  # widths in inches
INK, ACCENT, SOFT, BLUE, AMBER, VIOLET, GREEN = (
    "#1f2933",
    "#b3261e",
    "#7b8794",
    "#0b7285",
    "#c77700",
    "#5b3a8c",
    "#5a7d2b",
)
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ctseg",
    "font.family": ["Libertinus Serif", "STIXGeneral"],
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "axes.linewidth": .5,
    "xtick.major.width": .5,
    "ytick.major.width": .5,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": .5,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
NAMES = {
    "original-attunet": "original: Dice only",
    "masked": "masked sigmoid",
    "marginal": "marginal softmax",
    "masked-log": "masked, log Dice",
    "marginal-log": "marginal, log Dice",
    "marginal-image": "marginal, Dice per image",
    "masked-image": "masked, Dice per image",
    "masked-nopixel": "masked, no per-pixel known",
    "ce-dice-zeros": "CE + Dice, unknown = background",
}
# one colour a supervised recipe, in every figure
COLOURS = {
    "original-attunet": ACCENT,
    "marginal": AMBER,
    "marginal-image": "#d9a15a",
    "masked": BLUE,
    "masked-nopixel": "#7fb8c4",
    "masked-log": VIOLET,
    "ce-dice-zeros": SOFT,
}
MAIN = ("original-attunet", "marginal", "masked", "masked-log")  # shown in detail
METHODS = {
    "teacher-student": "teacher–student",
    "pretrain-finetune": "pretrain, fine-tune",
    "mean-teacher": "Mean Teacher",
    "unimatch": "UniMatch",
    "self-training": "self-training",
    "warm-unimatch": "supervised, then UniMatch",
    "ctseg": "then UniMatch, half as long",
    "ctseg-longer": "the same, both twice as long",
    "ctseg-second-3": "then UniMatch, three times as long",
    "longer": "supervised, longer",
}
FROM = {"original": ("Dice only", SOFT), "sigmoid": ("sigmoid", BLUE), "softmax": ("softmax", GREEN)}
BUDGET_COLOURS = {"original-attunet": ACCENT, "marginal-log": AMBER, "ctseg, short": GREEN, "ctseg": BLUE}
PHASED = {
    "original-teacher-student": ("teacher, student; Dice only", AMBER),
    "original-pretrain-finetune": ("teacher, pretrain, fine-tune; Dice only", ACCENT),
    "log-teacher-student": ("teacher, student; sigmoid", BLUE),
    "log-pretrain-finetune": ("teacher, pretrain, fine-tune; sigmoid", VIOLET),
    "marginal-teacher-student": ("teacher, student; softmax", GREEN),
    "marginal-pretrain-finetune": ("teacher, pretrain, fine-tune; softmax", INK),
}


def show(ax, image, mask=None, colours=None, title=""):
    "A slice, with a label map over it."
    picture = np.repeat(image[..., None], 3, -1)
    if mask is not None:
        picture = np.where((mask > 0)[..., None], .3*picture + .7*colours[mask], picture).astype(
            np.uint8
        )
    ax.imshow(picture, interpolation="nearest")
    ax.axis("off")
    ax.set_title(title, pad=3)

def band(ax, y, low, high, mean, dots, colour, width=3.):
    "An interval, its mean and the seeds on the line `y`."
    ax.plot([low, high], [y, y], color=colour, lw=width, alpha=.35, solid_capstyle="butt")
    ax.plot(dots, [y]*len(dots), "o", color=colour, ms=2.8, mew=0)
    ax.plot(mean, y, "|", color=ACCENT, ms=8, mew=1.5)

def lines(ax, labels, xlabel):
    "The axes of a plot with a labelled line an entry."
    ax.set(yticks=range(len(labels)), yticklabels=labels, xlabel=xlabel, ylim=(-.6, len(labels) - .4))
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)


def states():
    "A phantom slice as it is, as it is written down, and the table of what is known of all training slices."
    train, test = small_phantom()
    i, C = int(test.present.sum(1).argmax()), len(test.classes)
    image, truth = test.images[i], test.masks[i]
    looked_for = np.random.default_rng(1).permutation(np.arange(1, C + 1))[:C//2]
    written = np.where(np.isin(truth, looked_for), truth, 0)
    fig, ax = plt.subplots(1, 4, figsize=(PAGE, 1.95), layout="constrained", width_ratios=[1, 1, 1, 1.5])
    for a, mask, title in zip(
        ax, (None, truth, written), ("(a) a slice", "(b) what is there", "(c) what is written down")
    ):
        show(a, image, mask, test.classes.colours, title)
    hidden = ax[2].contourf((truth > 0) & (written == 0), levels=[.5, 1.5], colors="none", hatches=["////"])
    hidden.set(edgecolor="white", linewidth=0)
    cells = np.where(~train.known, 0, np.where(train.present, 2, 1))
    ax[3].imshow(cells, cmap=ListedColormap(list(STATES.values())), aspect="auto", interpolation="nearest")
    ax[3].set(xlabel="structure", ylabel="slice", xticks=[0, C//3 - 1, 2*C//3 - 1, C - 1],
              yticks=[0, train.labelled.sum() - 1, len(train) - 1])
    for axis in (ax[3].xaxis, ax[3].yaxis):
        axis.set_major_formatter(lambda v, _: f"{v + 1:.0f}")
    ax[3].set_title("(d) the state of every cell", pad=3)
    ax[3].legend(
        handles=[Patch(color=c, label=n) for n, c in reversed(STATES.items())],
        loc="lower right",
        fontsize=6.5,
        frameon=True,
        facecolor="white",
        edgecolor="none",
        framealpha=.9,
        handlelength=1,
    )
    return fig

def scores(t):
    "Every seed of every recipe, the mean, and its interval over patients."
    some = t["rows"][::-1]
    fig, ax = plt.subplots(figsize=(COLUMN, .22*len(some) + .5), layout="constrained")
    for y, r in enumerate(some):
        band(ax, y, r["low"], r["high"], r["dice"], r["scores"], BLUE)
    lines(ax, [f'{NAMES.get(r["name"], r["name"])} ({r["seeds"]})' for r in some], "Dice")
    ax.grid(axis="x", lw=.3, color="0.85")
    ax.set_axisbelow(True)
    return fig

def short(name):
    "The name of a class, as short as it can be told apart."
    for long, brief in (("_", " "), ("spinal ", ""), (" right", " r."), (" left", " l.")):
        name = name.replace(long, brief)
    return name

def by_class(t):
    "Dice of each class under the main recipes."
    by, order = {r["name"]: r["by_class"] for r in t["rows"]}, np.argsort(t["support"])[::-1]
    names = [n for n in MAIN if n in by]
    fig, ax = plt.subplots(figsize=(COLUMN, 1.75), layout="constrained")
    for k, n in enumerate(names):
        x = np.arange(len(order)) + (k - (len(names) - 1)/2)*.84/len(names)
        ax.bar(x, np.array(by[n])[order], .78/len(names), color=COLOURS[n], label=NAMES[n])
    ax.set(xticks=range(len(order)), ylabel="Dice", ylim=(0, 1))
    ax.set_xticklabels([f'{short(t["classes"][c])}\n{t["support"][c]}' for c in order], fontsize=6.1)
    ax.tick_params(axis="x", length=0)
    ax.legend(
        ncols=len(names),
        loc="upper center",
        columnspacing=.6,
        handlelength=.8,
        handletextpad=.4,
        borderpad=0,
        fontsize=7 if len(names) < 4 else 6,
    )
    return fig

def choose(masks, k):
    "`k` slices that between them show most classes."
    parts, pick, seen = [set(np.unique(m)) - {0} for m in masks], [], set()
    while len(pick) < k:
        pick.append(
            max(
                (i for i in range(len(parts)) if i not in pick),
                key=lambda i: (len(parts[i] - seen), len(parts[i]), -i),
            )
        )
        seen |= parts[pick[-1]]
    return sorted(pick)

def looks(results, folder):
    "Test slices with their truth and the predictions of the first seed. None if no run has kept any."
    runs, path = load(folder), results/f"{folder.name}.npz"
    kept = {n: runs[n][min(runs[n])]["shown"] for n in MAIN if n in runs and "shown" in runs[n][min(runs[n])]}
    if not kept or not path.exists(): return None
    d, box = np.load(path), (slice(8, 58), slice(7, 57))
    columns, pick = {"image": None, "truth": d["truth"]} | kept, choose(d["truth"], 4)
    title, height = .16, COLUMN*len(pick)/(len(kept) + 2)
    fig, ax = plt.subplots(
        len(pick),
        len(columns),
        figsize=(COLUMN, height + title),
        gridspec_kw=dict(wspace=.03, hspace=.03, left=0, right=1, top=height/(height + title), bottom=0),
    )
    for i, line in zip(pick, ax):
        for a, masks in zip(line, columns.values()):
            show(a, d["images"][i][box], None if masks is None else masks[i][box], d["colours"])
    for a, name in zip(ax[0], columns):
        a.set_title({"original-attunet": "original", "masked-log": "log Dice"}.get(name, name), pad=3)
    return fig


def dice_curve(run): return [float(r["dice"]) for r in history(run)]

def curve(ax, runs, colour, label):
    "The held-out Dice of every run, thin, and their mean."
    each = [dice_curve(r) for r in runs]
    for y in each: ax.plot(y, color=colour, lw=.5, alpha=.4)
    ax.plot(np.mean(each, 0), color=colour, lw=1.4, label=label)

def hand_overs(ax, run, colour, height):
    "Where one phase ends and the next begins."
    h = [r["phase"] for r in history(run)]
    for k in range(1, len(h)):
        if h[k] == h[k - 1]: continue
        ax.axvline(k - .5, color=colour, lw=.7, ls=":", ymax=.93)
        ax.text(
            k,
            height,
            h[k].replace("finetune", "fine-tune"),
            color=colour,
            fontsize=6.5,
            transform=ax.get_xaxis_transform(),
        )

def with_history(folder):
    "The runs of a table that have kept their learning curve: {name: runs}."
    of_name = {n: [r for r in by_seed.values() if history(r)] for n, by_seed in load(folder).items()}
    return {n: runs for n, runs in of_name.items() if runs}

def curves(supervised, semi):
    """Held-out Dice after every pass: the supervised losses, and the phases of the original's methods where
    they were run."""
    have = with_history(supervised)
    phased = {n: runs for n, runs in with_history(semi).items() if n in PHASED} if semi else {}
    fig, ax = plt.subplots(
        1, 1 + bool(phased), figsize=(PAGE if phased else COLUMN, 2.1), layout="constrained", squeeze=False
    )
    for n in (*MAIN, "ce-dice-zeros"):
        if n in have: curve(ax[0, 0], have[n], COLOURS[n], NAMES[n])
    ax[0, 0].set(xlabel="pass over the annotated slices", ylabel="Dice, held-out cells")
    for i, (n, (label, c)) in enumerate(PHASED.items()):
        if n in phased:
            curve(ax[0, 1], phased[n], c, label)
            hand_overs(ax[0, 1], phased[n][0], c, .94 - .075*(i%2))
    if phased: ax[0, 1].set(xlabel="pass of the run, all phases in a row")
    for a in ax[0]:
        a.set_ylim(0, a.get_ylim()[1]*(1 if a is ax[0, 0] else 1.12))
        a.legend(
            loc="upper center",
            bbox_to_anchor=(.5, -.24),
            ncols=2,
            handlelength=1.2,
            labelspacing=.15,
            columnspacing=1,
            fontsize=6.8,
        )
    return fig

def two_metrics(rows):
    "The right and the transposed number of every run."
    fig, ax = plt.subplots(figsize=(COLUMN, 1.9), layout="constrained")
    for n in dict.fromkeys(r["recipe"] for r in rows):
        points = [(r["right"], r["transposed"]) for r in rows if r["recipe"] == n]
        ax.plot(*zip(*points), "o", ms=3.5, mew=0, color=COLOURS.get(n, INK), label=NAMES.get(n, n))
    low, high = min(r["transposed"] for r in rows) - .02, max(r["right"] for r in rows) + .02
    ax.plot([low, high], [low, high], color="0.75", lw=.7, zorder=0)
    ax.set(xlabel="the challenge's metric", ylabel="transposed", xlim=(low, high))
    ax.legend(fontsize=6.2, handletextpad=.1, labelspacing=.25, loc="center left", bbox_to_anchor=(1, .5),
              title="grey line: equal", title_fontsize=6.2)
    return fig

def methods(tables):
    """Each semi-supervised method against the supervised run of the same loss; a panel a table {title:
    table}. None without any."""
    pairs = {}
    for title, t in tables.items():
        cells = [
            (k, c["method"], c[k]["vs"])
            for k in FROM
            for c in t["cells"]
            if c["method"] != "supervised" and c[k]
        ]
        cells = [c for c in cells if c[2]]
        if cells: pairs[title] = cells[::-1]
    if not pairs: return None
    size = PAGE if len(pairs) > 1 else COLUMN, .17*max(map(len, pairs.values())) + .6
    fig, axes = plt.subplots(1, len(pairs), figsize=size, layout="constrained", squeeze=False, sharex=True)
    for ax, (title, cells) in zip(axes[0], pairs.items()):
        for y, (k, _, v) in enumerate(cells):
            band(ax, y, v["low"], v["high"], v["difference"], v["by_seed"], FROM[k][1])
        ax.axvline(0, color=INK, lw=.6)
        ax.set_title(title)
        labels = [f'{METHODS.get(m, m)}, {FROM[k][0]} ({v["seeds"]})' for k, m, v in cells]
        lines(ax, labels, "Dice more than supervised")
    return fig


def budgets(cells):
    "Dice over the number of annotated slices: every training, and a line a row through their means."
    if not cells: return None
    fig, ax = plt.subplots(figsize=(COLUMN, 2.2), layout="constrained")
    slices = sorted({c["slices"] for c in cells})
    for row, colour in BUDGET_COLOURS.items():
        own = [c for c in cells if c["row"] == row]
        means = [np.mean(c["scores"]) for c in own]
        ax.plot([c["slices"] for c in own], means, color=colour, lw=1.2, label=row)
        for c in own:
            ax.plot([c["slices"]]*len(c["scores"]), c["scores"], "o", color=colour, ms=2.8, mew=0)
    ax.set(xscale="log", xticks=slices, xticklabels=slices, xlabel="annotated slices", ylabel="Dice")
    ax.minorticks_off()
    ax.legend(fontsize=6.8, frameon=False)
    return fig


def draw(data: dict, results: Path, out: Path) -> dict[str, dict]:
    """Write every figure that there is something for into `out`; {name: its file, and whether it spans the
    page}."""
    semi = {
        f"{n} annotated slices": data[k]
        for k, n in (("semi100", 100), ("semi800", data["realct"]["labelled"]))
        if data[k]
    }
    phases = next((results/k for k in ("semi800", "semi100") if data[k] and data[k]["phases"]), None)
    made = {"states": states}
    if t := data["supervised"]:
        made |= {
            "scores": lambda: scores(t),
            "by_class": lambda: by_class(t),
            "looks": lambda: looks(results, results/"supervised"),
            "curves": lambda: curves(results/"supervised", phases),
        }
    if data["transposed"]:
        made |= {"two_metrics": lambda: two_metrics(data["transposed"])}
    made |= {"budgets": lambda: budgets(data["beyond"]["budgets"])}
    if semi: made |= {"methods": lambda: methods(semi)}
    files = {}
    # it has not got typst's font and measures with the next
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    with plt.style.context(["default", STYLE]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for name, make in made.items():
            if (fig := make()) is None: continue
            fig.savefig(out/f"{name}.svg", metadata={"Date": None})
            files[name] = {"file": f"{name}.svg", "wide": bool(fig.get_figwidth() > COLUMN)}
            plt.close(fig)
    return files
