# %% [markdown]
# # Options
#
# > What is said of a run beside its settings, and what its choices are called elsewhere.
#
# - skip_showdoc: true

# %%
#| default_exp runs.options

# %% [markdown]
# A recipe holds settings. The seed, the device and the like are no part of it: they are options of `ctseg fit`, and parameters of `fit`. Who
# looks for one among the settings is told so. Each comes with a line of what it means, in which the names that other programs have for
# it stand, so that [a foreign name](../core/04_meant.ipynb) finds it.

# %%
#| export
OPTIONS = {
    "recipe": "a named choice of all settings",
    "out": "the folder to write, the output, where all is saved",
    "seed": "of all that is random",
    "device": "cpu, cuda for a GPU, or mps",
    "init": "start from the weights of a run, as from a checkpoint",
    "teacher": "a run that goes on teaching its classes",
    "log": "a logger, such as tensorboard or wandb",
    "resume": "continue a run that was stopped",
    "memory": "of the device, for slices",
    "time_limit": "stop before this much time has passed",
    "annotated": "which classes were examined",
    "plugin": "a Python file of your own",
}

def as_option(name: str) -> str:
    "A parameter as it is typed on the command line."
    return "--" + name.replace("_", "-")


# %%
print(", ".join(map(as_option, OPTIONS)))

# %% [markdown]
# Four groups of settings begin with a choice by name.

# %%
#| export
CHOSEN = {
    "method": "the way of training, an algorithm or strategy",
    "model": "the network: its architecture, backbone or encoder",
    "loss": "the loss function, or criterion",
    "augment": "the augmentation of images",
}

# %%
print(list(CHOSEN))
