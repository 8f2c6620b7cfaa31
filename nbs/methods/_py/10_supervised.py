# %% [markdown]
# # Supervised
#
# > The baseline of everything: learn from the annotated slices alone.

# %%
#| default_exp methods.supervised

# %%
#| export
from ctseg.training.method import Method, register_method

# %%
#| hide
from ctseg.data.toys import toy_set
from ctseg.losses.registry import create_loss
from ctseg.methods.in_memory import MemoryJob, toy_score
from ctseg.models import create_model
from ctseg.training.setup import ScheduleSettings, Setup


# %% [markdown]
# The base class of all [methods](../training/50_method.ipynb) is supervised learning already: one phase on the annotated slices, and a loss that respects what is unknown in them. It needs a name only.

# %%
#| export
@register_method("supervised")
class Supervised(Method):
    "One phase on the annotated slices; slices without annotation are not used."


# %% [markdown]
# Ten toy bodies, on each of which two of three structures were looked for, are enough to learn them. The score is that of a hundred fresh slices, whose truth is known.

# %%
slices, truth = toy_set(10, 10)
loss = create_loss("marginal", log_dice=True)
setup = Setup(ScheduleSettings(epochs=60, batch_size=5, lr=1e-2), progress=False)
job = MemoryJob(slices, loss, lambda: create_model("attunet", 1, 4, width=4), setup)
model = job.run(Supervised())
fresh, answer = toy_set(100, 0, seed=1)
print(f"phases: {', '.join(job.models)}; Dice on fresh slices {toy_score(model, loss, fresh, answer):.2f}")
