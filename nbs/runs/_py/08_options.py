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
# looks for one among the settings is told so. The texts are those of `ctseg fit --help`. The names that other programs have for an option
# stand in them, so that [a foreign name](../core/04_meant.ipynb) finds it; up to the first semicolon it is told.

# %%
#| export
OPTIONS = {
    "recipe": "a named choice of all settings: one that `ctseg recipes` lists, or the recipe.json of a run; "
              "left out: ctseg",
    "out": "the run folder to write: the output, where all is saved",
    "seed": "the start of all that is random; another number gives other first weights, another order of "
            "slices and augmentation",
    "device": "auto, cpu, cuda for a GPU, cuda:N, or mps (Apple)",
    "init": "start from the weights of a run, as from a checkpoint, by class name; "
            "a folder, or hf://owner/name",
    "teacher": "a run that goes on teaching its classes where nobody examined them here",
    "log": "a logger: tensorboard, wandb, mlflow or another tracker of accelerate; may be repeated",
    "resume": "continue a run that was cut or stopped",
    "memory": "most memory of the device for slices, such as 4GB; slices that need more are read while "
              "training; left out: a quarter of its free memory",
    "time_limit": "stop, with everything saved, before this much time has passed, such as 8h30m or 90m",
    "annotated": "which classes were examined; json: as annotated_labels.json says; all: every class; "
                 "present: only classes with pixels",
    "plugin": "a Python file of your own; it registers a method, loss, network or augmentation, and is "
              "executed; may be repeated",
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
