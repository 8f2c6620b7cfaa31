# %% [markdown]
# # More slices than memory: how time and memory grow
#
# > From 2,000 to 200,000 slices of 64x64: an import, making a store, checking it, 100 steps of the default recipe, evaluation.
#
# - skip_showdoc: true

# %% [markdown]
# **Question.** Does memory grow with the number of slices, and what does reading from a [store](../data/74_store.ipynb) cost a training step?
#
# **Answer.** A little: with a hundred times as many slices, making a store takes 320 MB more, checking and evaluating it about 200 MB each, training 140 MB. This is the index,
# names and file names above all; 200,000 slices stay below 0.8 GB in every command. A full step of this small network, with both kinds of slices,
# costs 1.05 to 1.08 times the processor time of one in memory, and the weights at the end are the same to the last bit.
#
# ## How it was measured
#
# `python tools/scale.py 2000 20000 200000 --work FOLDER` takes the slices of `data_sample` again and again, each moved by up to three pixels and with a
# little noise; the first 2,000 are annotated as the originals are. Their patients are those of the originals. Each command runs in a
# process of its own, and the system tells its largest resident memory at its end. Training is the recipe `ctseg` at width 8: 50 steps
# on annotated slices and 50 with all others, 8 of each a step, from a store with `--memory 10MB`. Label maps to score are the truth moved by a pixel.
#
# Other programs ran on the machine beside the largest set, so the seconds of a command are an upper bound. The cost of a step is its processor time, of all threads
# together, which other programs change less. The weights at the end are compared by their hash.

# %%
import json
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

measured = json.loads(Path("results/store_scale.json").read_text())
rows = measured["rows"]
print(measured["machine"], measured["versions"])

# %%
COMMANDS = ("import", "store", "check", "fit", "evaluate")
table = [
    {"slices": row["slices"]}
    | {f"{name}, s": row[name]["seconds"] for name in COMMANDS}
    | {f"{name}, MB": row[name]["peak MB"] for name in COMMANDS}
    | {"store on disk, MB": row["store MB"], "files": row["files"]}
    for row in rows
]
pd.DataFrame(table).set_index("slices").T

# %%
#| fig-alt: "Largest memory and time of five commands against the slices; the arrays alone would need more"
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
sizes = [row["slices"] for row in rows]
for name in COMMANDS:
    left.plot(sizes, [row[name]["peak MB"] for row in rows], "o-", label=name)
    right.plot(sizes, [row[name]["seconds"] for row in rows], "o-", label=name)
left.plot(sizes, [2*64*64*n/2**20 for n in sizes], ":", color="0.5", label="images and masks as arrays")
left.set(xscale="log", xlabel="slices", ylabel="MB", title="largest resident memory", ylim=(0, 2048))
right.set(xscale="log", yscale="log", xlabel="slices", ylabel="seconds", title="time")
left.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## What a step costs
#
# Processor time of a step in ms (median), streamed from the store and with all slices in memory; and whether the weights at the end are the
# same.

# %%
steps = []
for row in rows:
    line = {"slices": row["slices"]}
    line |= {"streamed": row["steps"]["unimatch"], "annotated only": row["steps"]["supervised"]}
    if "steps in memory" in row:
        memory = row["steps in memory"]
        line["in memory"] = sum(m["unimatch"] for m in memory)/len(memory)
        again = (row["steps"]["unimatch"] + row["steps again"]["unimatch"])/2
        line["ratio"] = round(again/line["in memory"], 3)
        line["same weights"] = {row["steps"]["weights"]} == {m["weights"] for m in memory}
    steps.append(line)
pd.DataFrame(steps).set_index("slices").round(2)

# %% [markdown]
# ## Streamed and in memory in turn
#
# The same tool with an earlier version of the package, streamed and in memory in turn: 20,000 slices, 8 steps with annotated slices and 24 with all, in bfloat16.

# %%
again = json.loads(Path("results/store_again.json").read_text())
commands = {name: again["rows"][0][name] for name in COMMANDS[1:]}
print(again["machine"], again["versions"])
pd.DataFrame(commands)

# %% [markdown]
# Training streamed and in memory, in turn; processor time of a step in the median:

# %%
turns = pd.DataFrame(again["steps of two in turn"])
means = turns.groupby("slices")["unimatch, ms"].mean()
ratio, alike = means["streamed"]/means["in memory"], turns.weights.nunique() == 1
print(f"streamed over in memory: {ratio:.2f}; weights alike: {alike}")
turns.drop(columns="weights")

# %% [markdown]
# ## What 400,000 slices of 256x256 would take
#
# The index does not depend on the size of a slice. From the growth between the two largest sets, memory for 400,000 slices would be:

# %%
small, large = rows[-2:]
more = 400_000 - large["slices"]
def at_400_000(name):
    "The memory of a command, by the straight line through its two largest sets."
    growth = (large[name]["peak MB"] - small[name]["peak MB"])/(large["slices"] - small["slices"])
    return f"{large[name]['peak MB'] + more*growth:.0f} MB"

{name: at_400_000(name) for name in COMMANDS}

# %% [markdown]
# This leaves out what a network needs at 256x256, and a chunk is then a slice of 64 kB. The time of `store`, `check` and `evaluate` grows with the number of
# pixels, sixteen times as many a slice.

# %% [markdown]
# ## Every other command
#
# `python tools/growth.py 480 2000 8000 --work FOLDER` measures imports into a folder and into a store, exports, merging, suggestions and the report in the same way, on fewer slices (40 to a patient, every second patient annotated).
# `check`, `fit`, `report` and `suggest` read a store; `merge` has twice as many slices, of two folders. DICOM was measured up to 2,000 slices. The last column is how much a slice more costs, between the two largest sets.

# %%
growth = pd.DataFrame(json.loads(Path("results/growth.json").read_text())).set_index("slices").T
peaks = growth.map(lambda cell: cell["peak MB"] if isinstance(cell, dict) else float("nan"))

def kb_a_slice(row):
    "Growth in kB between the two largest sets that were measured."
    known = row.dropna()
    return 1024*(known.iloc[-1] - known.iloc[-2])/(known.index[-1] - known.index[-2])

peaks.astype("Int64").astype(str).replace("<NA>", "").assign(**{
    "kB a slice": [f"{kb_a_slice(row):.1f}" for _, row in peaks.iterrows()],
})

# %% [markdown]
# An image and its mask are 8 kB here, 128 kB with 256x256 pixels. `export rle` and `evaluate` keep the label maps of a submission in a temporary file, and `fit` a sample of held-out pixels, up to 256 MB, with which it calibrates at its end; it took 1,061 MB with 8,000 slices when that was in memory. Below some 16,000 slices of 64x64 buffers of fixed size still fill up, which the last column counts as growth: 64 MB in which a table of masks is turned, and
# parts of 8 MB of a store.
