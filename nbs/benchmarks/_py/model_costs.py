# %% [markdown]
# # What each architecture costs
#
# > Parameters and multiply-adds of every network in the zoo.
#
# - skip_showdoc: true

# %% [markdown]
# **Question.** How large is each network, and how much does it compute?
#
# **Answer.** `attunet`, the network of most recipes, has 35 million parameters and takes the most arithmetic of all: 56 billion multiply-adds a slice. `unet:resnet34` has 24 million and takes a seventh of it. `unet:tf_efficientnet_lite0`, which the recipe `ctseg` takes from 128 pixels on with a lighter decoder than here, is the cheapest.
#
# ## How it was measured
#
# Two sizes that do not depend on the machine: parameters, and multiply-adds for a forward pass of one 256×256 slice with 55 outputs. [Costs](../models/90_costs.ipynb) counts them with PyTorch's own counter. Time and memory beside other
# implementations are in [models: time and memory](models_speed.ipynb).

# %%
import pandas as pd

from ctseg.models import list_models
from ctseg.models.costs import model_facts

# %%
table = pd.DataFrame([model_facts(n, measure=False) for n in list_models()])[
    ["name", "parameters", "multiply_adds", "about", "paper"]
]
table.to_csv("results/models.csv", index=False)
table.style.set_uuid("costs").format(
    {"parameters": "{:,}", "multiply_adds": lambda v: f"{v/1e9:.1f} billion"}
).hide(axis="index")
