# %% [markdown]
# # How long until a command begins?
#
# > Time of a start, of the processor and on the clock, before and after parts are loaded only where they are needed.
#
# - skip_showdoc: true

# %% [markdown]
# **Question.** What does it cost to start a command, before it does what it is for?
#
# **Answer.** `ctseg check` of a folder that tells its patients takes a fifth of the time that it took, `predict` about half, `fit` to its first step and `segment` about 0.6. The clock says the same as the processor: a start is one thread's work. `--help` was quick already.
#
# ## How it was measured
#
# `python tools/startup.py --before CHECKOUT` runs each command in a process of its own, one thread, this checkout and another in turn. What counts is the least of four tries: the processor time of the process, user and system, and the time on the clock. Other work on the machine only adds to both; here there was some, and the tries of `fit` differed by up to half. `fit` (recipe `ctseg`, `data_sample`, the Attention U-Net) ends at its first step.

# %%
import json
from pathlib import Path

import pandas as pd

measured = json.loads(Path("results/startup.json").read_text())
print(measured["versions"], measured["processor"], "before:", measured["before"])
table = pd.DataFrame(measured["rows"]).T
table["now/before"] = table["now"]/table["before"]
table["now/before, clock"] = table["now, clock"]/table["before, clock"]
table.round(2)

# %% [markdown]
# ## What a start does without
#
# * `check` needed PyTorch for thumbnails that find near-duplicates. A folder that tells its patients needs none, so PyTorch, scikit-image and SciPy are loaded where they are used.
# * pandas is loaded where a table is made. `segment` makes none. It needed SciPy's optimiser to choose among the six orders of three axes, and now looks at all six.
# * accelerate is loaded where a training begins, so not by `predict` and `segment`.
# * `fit` makes its network once. It made one to see that it can be made, and another to train it.
# * Python's [collector rests](../core/47_loading.ipynb) while modules are loaded. It took 0.6 of 6.4 seconds of processor time.
#
# ## What is left
#
# What is left of `fit` is mostly PyTorch and its compiler, `torch._dynamo` with SymPy. Nothing is compiled. PyTorch's optimisers load the compiler in their constructor, to tell it that it shall leave them alone, and no public setting prevents that: `TORCH_COMPILE_DISABLE` is read after loading.
# Both together take 0.6 of what `fit` took before, if the collector works meanwhile. So half of it, which was the aim, would need a PyTorch whose optimisers do without the compiler.
#
# A thread that reads the slices while PyTorch is loaded would gain little. Reading those of `data_sample` from the cache takes a fiftieth of the start, and loading is Python's own work, which two threads do in turn.
