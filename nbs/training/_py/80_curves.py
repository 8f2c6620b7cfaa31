# %% [markdown]
# # Curves
#
# > Learning curves: after the training, and while it goes on.

# %%
#| default_exp training.curves

# %%
#| export
import sys

import numpy as np

# %%
#| hide

import matplotlib.pyplot as plt
import pandas as pd


# %% [markdown]
# The left panel shows the loss, the right one the Dice of the held-out slices. Phases follow each other, and a dotted line marks where one hands over to the next.

# %%
#| export
def plot_curves(history):
    """Training loss over the epochs of all phases, and Dice beside it where slices were held out.

    `history` is a table (pandas) with the columns of `history.csv`. Returns the figure."""
    import matplotlib.pyplot as plt
    panels = {"loss": "training loss"}
    if history.dice.notna().any():
        panels["dice"] = "Dice on the held-out slices (examined classes)"
    size = (4.5*len(panels), 3)
    axes = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)[1][0]
    start = 0
    for phase, rows in history.groupby("phase", sort=False):
        epochs = start + np.arange(1, len(rows) + 1)
        for ax, column in zip(axes, panels):
            ax.plot(epochs, rows[column], label=phase)
            if start: ax.axvline(start + 0.5, color="0.7", lw=1, ls=":")
        start = epochs[-1]
    for ax, title in zip(axes, panels.values()):
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("epoch")
    axes[0].legend(frameon=False)
    return axes[0].figure


# %%
#| fig-alt: "Loss on the left and Dice on the right over two phases, a dotted line between them"
def toy_history(phase, epochs, first_step, start):
    falling = np.exp(-np.arange(epochs)/4)
    return [
        dict(
            phase=phase,
            epoch=e + 1,
            step=first_step + 5*(e + 1),
            lr=1e-3,
            loss=start*f + .3,
            dice=.85 - start*f/3,
            skipped=0,
        )
        for e, f in enumerate(falling)
    ]

history = toy_history("supervised", 12, 0, 1.5) + toy_history("unimatch", 6, 0, .2)
plot_curves(pd.DataFrame(history))
plt.show()


# %% [markdown]
# During training the bar shows rate, remaining time and the latest score. In a notebook the curves are drawn anew after each epoch. TensorBoard and others follow with [`--log`](85_trackers.ipynb).

# %%
#| export
class Watch:
    "Curves in a notebook; call it with the history after each epoch."
    def __init__(self):
        self.handle = None

    def __call__(self, history: list[dict]) -> None:
        if in_notebook(): self.draw(history)

    def draw(self, history: list[dict]) -> None:
        "Draw the curves, in the place of those drawn before."
        import matplotlib.pyplot as plt
        import pandas as pd
        from IPython.display import display
        fig = plot_curves(pd.DataFrame(history))
        if self.handle:
            self.handle.update(fig)
        else:
            self.handle = display(fig, display_id=True)
        plt.close(fig)

def in_notebook() -> bool:
    "Is somebody watching through Jupyter's front end?"
    ipython = sys.modules.get("IPython")
    return bool(ipython) and type(ipython.get_ipython()).__name__ == "ZMQInteractiveShell"


# %%
Watch()(history)
print("in a notebook's front end:", in_notebook())
