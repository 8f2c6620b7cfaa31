# %% [markdown]
# # How long until a command begins?
#
# > Processor time of a start, before and after parts are loaded only where they are needed.
#
# - skip_showdoc: true

# %% [markdown]
# **Question.** What does it cost to start a command, before it does what it is for?
#
# **Answer.** `ctseg check` of a folder that tells its patients takes a sixth of the processor time that it took. `fit` to its first step takes 0.8 of it and `predict` 0.75;
# beyond `import torch`, which both need and which nobody here can shorten, that is 0.7 and 0.5. `--help` was quick already.
#
# ## How it was measured
#
# `python tools/startup.py --before CHECKOUT` runs each command in a process of its own, one thread, this checkout and another in turn. What counts is the processor time of the
# process, user and system, the least of the repetitions; other work on the machine only adds to it. `fit` (recipe `ctseg`, `data_sample` when it had 400 slices, the Attention U-Net) ends at its first step.

# %%
import json
from pathlib import Path

import pandas as pd

measured = json.loads(Path("results/startup.json").read_text())
print(measured["versions"], measured["processor"], "before:", measured["before"])
table = pd.DataFrame(measured["rows"]).T
table["now/before"] = table["now"]/table["before"]
table.round(2)

# %% [markdown]
# ## What is loaded later
#
# * `check` needed PyTorch for thumbnails that find near-duplicates. A folder that tells its patients needs none, so PyTorch, scikit-image and SciPy are loaded where they are used.
# * pandas is loaded where a table is made.
#
# What is left of `fit` is mostly `import torch` and PyTorch's compiler, `torch._dynamo` with SymPy. Nothing is compiled, but PyTorch's optimisers load it to tell it that it shall leave them alone. Measured again beside other work, torch with its compiler takes 2.2 s of processor time to load, torch alone 1.05, and `fit` to its first step 4.2, before 5.1: 0.82 of it, as in the table; `check` takes 0.20. So half of the first figure for `fit`, which was the aim, is what loading torch with its compiler takes alone. Half a second and more could be saved by setting private attributes of PyTorch and accelerate; that was tried and taken out again, since nobody could rely on it.
