# %% [markdown]
# # Supervised
#
# > The baseline of everything: learn from the annotated slices alone.
#
# - skip_showdoc: true

# %%
#| default_exp methods.supervised

# %% [markdown]
# A method is a **script of phases**: a function that gets a [`Job`](train.html) and calls `job.train` for each phase. The supervised script has one line, and
# is worth a page only because it shows the form that teacher–student, self-training and the others share.

# %%
#| export
from ctseg.train import Job


# %%
#| export
def supervised(
    job: Job, # the recipe at work on a set of slices
): # the trained, averaged model
    "One phase on the annotated slices; unlabelled slices are not used."
    return job.train("supervised")


# %%
#| hide
import nbdev; nbdev.nbdev_export()
