# %% [markdown]
# # Which published claims held here?
#
# > Advice from papers, competitors and our own first trials, each against what was measured on real CT. Negative results stay in.
#
# - skip_showdoc: true

# %% [markdown]
# **Question.** Which advice from papers, competitors and our own first trials holds on this real CT?
#
# **Answer.** Losses that leave the unknown alone, the logarithm of the Dice, a second phase with few annotated slices and the expected Dice with 54 structures held. Most semi-supervised methods on top of a good loss, and nearly all of them with 800 annotated slices, were not seen to help.
#
# ## How it was measured
#
# Every verdict is computed from the kept results of [partial labels](realct_supervised.ipynb), [unlabelled slices](realct_semi.ipynb) and [confidence](confidence.ipynb): *held* if the 95 % interval over the test patients is clear of zero on the claimed side **and** every training seed agrees, *the opposite* likewise on the other side, else *not seen*. One
# seed gets no verdict: *one seed: for it* or *against it* gives only the sign of the difference. The confidences, which have no interval, are only *in this order*, *in part* (SDC better than `max`, but not both on their side of chance) or *not seen*. The network is small (width 16), the slices are 64×64, the organs seven: a claim that fails here may hold elsewhere.
#
# [What the rows are called](row_names.ipynb).

# %%
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, "../../paper")
from measured import compare, decisions, load, rule_gain, verdict

RESULTS = Path("results")
runs = {t: load(RESULTS/t) for t in ("supervised", "semi100", "semi800", "phantom240")}

# %%
CLAIMS = [
    (
        "A loss that knows what is unknown beats zeros as background",
        "MultiTalent; marginal loss (Shi et al. 2021)",
        "supervised",
        "masked",
        "original-attunet",
    ),
    (
        "Cross-entropy that reads unknown as background is harmful",
        "field practice",
        "supervised",
        "marginal",
        "ce-dice-zeros",
    ),
    (
        "With zeros read as background, Dice alone beats Dice and cross-entropy",
        "the original; field practice",
        "supervised",
        "original-attunet",
        "ce-dice-zeros",
    ),
    (
        "Dice over the batch, absent cells in the denominator, beats Dice per image",
        "first trials, +.06",
        "supervised",
        "marginal",
        "marginal-image",
    ),
    (
        "A labelled pixel is a certain negative for every other class: worth using",
        "first trials, +.04",
        "supervised",
        "masked",
        "masked-nopixel",
    ),
    ("Softmax (marginal) beats sigmoid (masked)", "first trials, +.04", "supervised", "marginal", "masked"),
    (
        "The logarithm of the Dice rescues small structures",
        "Wong et al. 2018",
        "supervised",
        "masked-log",
        "masked",
    ),
    (
        "Teacher and student, as in the original",
        "the original, +.01",
        "semi100",
        "original-teacher-student",
        "original-attunet",
    ),
    (
        "Teacher and student with a better loss and confidence",
        "Lee 2013; ST++",
        "semi100",
        "log-teacher-student",
        "log",
    ),
    (
        "Pretrain on pseudo-labels, fine-tune on truth, as in the original",
        "the original",
        "semi100",
        "original-pretrain-finetune",
        "original-attunet",
    ),
    ("… with a better loss and confidence", "the same", "semi100", "log-pretrain-finetune", "log-fp32"),
    (
        "Mean Teacher helps the original's loss",
        "Tarvainen & Valpola 2017",
        "semi100",
        "original-mean-teacher",
        "original-attunet",
    ),
    ("… and ours", "the same", "semi100", "log-mean-teacher", "log"),
    (
        "… and ours with softmax, of what is left open",
        "the same",
        "semi100",
        "marginal-mean-teacher",
        "marginal-log",
    ),
    (
        "Weak-to-strong consistency from the first step helps the original's loss",
        "UniMatch (Yang et al. 2023)",
        "semi100",
        "original-unimatch",
        "original-attunet",
    ),
    ("… and ours", "the same", "semi100", "log-unimatch", "log"),
    (
        "… after a supervised phase, against that phase alone",
        "ours; stage 4 of others' recipes",
        "semi100",
        "log-warm-unimatch",
        "log",
    ),
    ("… against as many supervised steps", "the same", "semi100", "log-warm-unimatch", "log-longer"),
    ("… the second phase half as long", "the same", "semi100", "ctseg-sigmoid", "log-fp32"),
    ("… and with softmax outputs", "the same", "semi100", "ctseg", "marginal-log"),
    (
        "… three times as long (the recipe `ctseg` with so few)",
        "the same",
        "semi100",
        "ctseg-second-3",
        "marginal-log",
    ),
    ("… with 800 annotated slices", "the same", "semi800", "ctseg-sigmoid", "log"),
    ("… with 800 annotated slices, softmax", "the same", "semi800", "ctseg", "marginal-log"),
    (
        "Softmax beats sigmoid, with the second phase, 7 structures",
        "first trials, +.04",
        "semi100",
        "ctseg",
        "ctseg-sigmoid",
    ),
    ("… 800 annotated", "the same", "semi800", "ctseg", "ctseg-sigmoid"),
    ("… 54 structures (phantom)", "ours", "phantom240", "ctseg", "ctseg-sigmoid"),
    (
        "Out-of-fold self-training, cell by cell, helps the original's loss",
        "noisy student (Xie et al. 2020); FLARE22",
        "semi100",
        "original-self-training",
        "original-attunet",
    ),
    ("… and ours", "the same", "semi100", "log-self-training", "log"),
    (
        "Teacher and student, as in the original, 800 annotated",
        "the original, +.01",
        "semi800",
        "original-teacher-student",
        "original-attunet",
    ),
    (
        "Weak-to-strong consistency with the original's loss, 800 annotated",
        "UniMatch (Yang et al. 2023)",
        "semi800",
        "original-unimatch",
        "original-attunet",
    ),
    ("… with ours", "the same", "semi800", "log-unimatch", "log"),
    (
        "Mean Teacher with the original's loss, 800 annotated",
        "Tarvainen & Valpola 2017",
        "semi800",
        "original-mean-teacher",
        "original-attunet",
    ),
    ("… with ours, softmax", "the same", "semi800", "marginal-mean-teacher", "marginal-log"),
    (
        "Teacher and student with our softmax loss and Soft Dice Confidence, 800 annotated",
        "Lee 2013; ST++",
        "semi800",
        "marginal-teacher-student",
        "marginal-log",
    ),
    (
        "Pretrain on pseudo-labels, fine-tune on truth, as in the original, 800 annotated",
        "the original",
        "semi800",
        "original-pretrain-finetune",
        "original-attunet",
    ),
    ("… with our softmax loss", "the same", "semi800", "marginal-pretrain-finetune", "marginal-log"),
    (
        "Teacher and student, as in the original, 54 structures (phantom)",
        "the original, +.01",
        "phantom240",
        "original-teacher-student",
        "original-attunet",
    ),
    ("Training twice as long adds to the default", "common", "semi800", "ctseg-longer", "ctseg"),
    (
        "Out-of-fold self-training, 800 annotated",
        "noisy student; FLARE22",
        "semi800",
        "log-self-training",
        "log",
    ),
    ("… with softmax", "the same", "semi800", "marginal-self-training", "marginal-log"),
    (
        "… with softmax, 54 structures (phantom)",
        "the same",
        "phantom240",
        "marginal-self-training",
        "marginal-log",
    ),
    (
        "Weak-to-strong consistency with the original's loss, 54 structures (phantom)",
        "UniMatch (Yang et al. 2023)",
        "phantom240",
        "original-unimatch",
        "original-attunet",
    ),
    (
        "Mean Teacher with the original's loss, 54 structures (phantom)",
        "Tarvainen & Valpola 2017",
        "phantom240",
        "original-mean-teacher",
        "original-attunet",
    ),
]
rows = []
for claim, source, table, a, b in CLAIMS:
    d = compare(runs[table], a, b)
    if d:
        rows.append(
            {
                "claim": claim,
                "who says so": source,
                "measured": f"{a} − {b}"
                + (
                    " (100 annotated)"
                    if table == "semi100"
                    else (
                        " (800 annotated)"
                        if table == "semi800"
                        else " (phantom)" if table == "phantom240" else ""
                    )
                ),
                "difference": d["difference"],
                "low": d["low"],
                "high": d["high"],
                "seeds": d["seeds"],
                "verdict": verdict(d),
            }
        )

# %% [markdown]
# The presence gate is a rule, not a training: the same probabilities decided with it and without. Its rows join the others.

# %%
for name in ("marginal", "masked", "masked-log"):
    d = rule_gain(runs["supervised"].get(name, {}), name, "gate")
    if d:
        rows.append(
            {
                "claim": "A gate on the class's peak probability removes inventions",
                "who says so": "first trials, +.02",
                "measured": f"{name}: gate − argmax",
                "difference": d["difference"],
                "low": d["low"],
                "high": d["high"],
                "seeds": d["seeds"],
                "verdict": verdict(d),
            }
        )

for d in decisions(RESULTS/"decision"):
    if d["seeds"] > 2:
        rows.append(
            {
                "claim": (
                    "A score that is a ratio is best served by a threshold that depends on what it "
                    "usually is"
                ),
                "who says so": "Koyejo et al. 2014",
                "measured": f"{d['name']}: expected Dice − gate ({d['where']} annotated)".replace(
                    "annotated annotated", "annotated"
                ),
                **{k: d["over_gated"][k] for k in ("difference", "low", "high", "seeds")},
                "verdict": verdict(d["over_gated"]),
            }
        )

# %% [markdown]
# So do those of the confidences, by area under the risk–coverage curve (lower is better), three teachers averaged. All rows together:

# %%
conf = RESULTS/"confidence_slices.csv"
if conf.exists():
    t = pd.read_csv(conf)
    t = t[(t.of == "AURC") & (t.iloc[:, 2] == "mean")]
    for _, r in t.iterrows():
        rows.append(
            {
                "claim": "Mean max-probability is a poor filter, Soft Dice Confidence a good one",
                "who says so": "Borges et al. 2024",
                "measured": (
                    f"AURC, teacher {r.teacher}: max {r['max']:.3f}, chance {r.chance:.3f}, sdc "
                    f"{r.sdc:.3f}"
                ),
                "difference": r["max"] - r.sdc,
                "seeds": 3,
                "verdict": (
                    "in this order"
                    if r.sdc < r.chance < r["max"]
                    else "in part" if r.sdc < r["max"] else "not seen"
                ),
            }
        )

table = pd.DataFrame(rows)
table.round(4).to_csv(RESULTS/"claims.csv", index=False)
shown = ["claim", "verdict", "difference", "low", "high", "seeds", "measured", "who says so"]
table[shown].style.format(precision=3, na_rep="").hide(axis="index")
