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
from ctseg.core.settings import describe
from ctseg.data.toys import toy_set
from ctseg.losses.registry import create_loss
from ctseg.models import create_model
from ctseg.training.loop import Trainer
from ctseg.training.method import METHODS
from ctseg.training.setup import ScheduleSettings, Setup


# %% [markdown]
# The base class of all [methods](../training/50_method.ipynb) is supervised learning already: one phase on the annotated slices, and a loss that respects what is unknown in them. It needs a name only.

# %%
#| export
@register_method("supervised")
class Supervised(Method):
    "One phase on the annotated slices; slices without annotation are not used."


# %%
slices, truth = toy_set(24, 16)
job = type("Job", (), {"labelled": slices[slices.labelled]})
phase = next(METHODS.get("supervised")().phases(job))
loss = create_loss("marginal")
trainer = Trainer(
    create_model("attunet", 1, 4, width=4),
    loss,
    phase,
    Setup(ScheduleSettings(epochs=3, lr=5e-3), progress=False),
)
trainer.fit()
print(phase.name, [round(row["loss"], 3) for row in trainer.progress.history], describe(Supervised.Settings))
