# %% [markdown]
# # Killed at any moment
#
# > Fifty SIGKILLs at random moments over runs of every method: does each, resumed, end exactly as the run that was left alone?
#
# - skip_showdoc: true

# %% [markdown]
# **Question.** Does a run that is killed at any moment, and resumed, end as the run that was left alone?
#
# **Answer.** Yes: after fifty SIGKILLs in runs of six recipes every file of every resumed run was identical, byte for byte.
#
# ## How it was measured
#
# [The loop](../training/70_loop.ipynb) claims that a run can be cut *anywhere* and ends with bit-identical weights and history. SIGKILL cannot be caught, so nothing is tidied up. It strikes in the middle of a step, while a checkpoint is being
# written, between two phases, while a teacher labels. Each run below is killed again and again after a random part of its time and resumed each time, then left to end. All its files (weights, averages, history, pseudo-labels, the chosen rule) are compared
# byte by byte with those of a run that nobody disturbed. The slices are toys and the network is tiny, because the book-keeping is what is tested.
#
# The short version is in `tests/training/test_checkpoints.py`; this page uses the same helpers. [What the rows are called](row_names.ipynb): `seed-…` are the recipes `original-…`.

# %%
import platform, random, sys, tempfile, time
from pathlib import Path

import pandas as pd
import torch
sys.path.insert(0, "../../tests")
from helpers.runs import contents, fit_quietly, kill_and_resume, start
from helpers.toys import small, toy

# %%
KILLS = {
    "masked": 8,
    "seed-teacher-student": 8,
    "seed-pretrain-finetune": 8,
    "mean-teacher": 8,
    "unimatch": 9,
    "self-training": 9,
}
rows, moments, slices = [], [], toy()
for name, kills in KILLS.items():
    recipe = small(name, "epochs=3", "model=tiny-for-tests")
    with tempfile.TemporaryDirectory() as d:
        d, begin = Path(d), time.monotonic()
        p = start(fit_quietly, slices, recipe, d/"whole")
        p.join()
        seconds, whole, rng = time.monotonic() - begin, contents(d/"whole"), random.Random(name)
        struck, same, runs = [], True, 0
        while len(struck) < kills:  # a run may reach its end before it has been killed often enough
            runs += 1
            struck += kill_and_resume(
                slices, recipe, d/f"cut-{runs}", seconds, min(4, kills - len(struck)), rng
            )
            same &= contents(d/f"cut-{runs}") == whole
        rows.append(
            {
                "recipe": name,
                "runs": runs,
                "kills": len(struck),
                "files compared": len(whole),
                "all identical": same,
            }
        )
        moments += [{"recipe": name, "finished phases": p, "epochs": e} for p, e in struck]
print(f"Python {platform.python_version()}, torch {torch.__version__}, CPU, one thread")
pd.DataFrame(rows).set_index("recipe")

# %% [markdown]
# How many epochs the runs had finished when they were killed (0: during the start or the first epoch):

# %%
pd.crosstab(pd.DataFrame(moments).recipe, pd.DataFrame(moments).epochs)

# %%
assert all(r["all identical"] for r in rows) and sum(r["kills"] for r in rows) >= 50
