# %% [markdown]
# # States
#
# > Whether the state in a checkpoint can be that of this phase and this network.

# %%
#| default_exp training.states

# %%
#| export
from typing import Any

import torch

from ctseg.core.schema import COUNT, Unexpected, anything, fields, listed, number, text

# %%
#| hide
from torch import nn


# %% [markdown]
# A checkpoint may load and still be of no use: it lacks something, it was copied from another run, or somebody changed it. It is looked at before anything is taken from it. If it does not fit, training goes on from the checkpoint before it.

# %%
#| export
def real(value: Any) -> None:
    "Numbers, NaN among them: a loss that was no number is noted as such."
    if not isinstance(value, float): raise Unexpected(value, "a number")

_ROW = fields({
    "phase": text,
    "epoch": COUNT,
    "step": COUNT,
    "lr": number(),
    "loss": real,
    "dice": real,
    "skipped": COUNT,
})
_OPTIMISER = fields({"state": anything, "param_groups": anything})
_STATE = fields({
    "epoch": COUNT,
    "step": COUNT,
    "history": listed(_ROW),
    "losses": listed(real),
    "skipped": COUNT,
    "in_a_row": COUNT,
    "pieces": number(1, whole=True),
    "ema_steps": COUNT,
    "scaler": anything,
    "method": anything,
    "opt": _OPTIMISER,
})


# %%
#| export
def check_progress(state: dict[str, Any], epochs: int, steps: int) -> None:
    "Raises unless a checkpoint's state is one of a phase of so many epochs of so many steps."
    _STATE(state)
    epoch, step = state["epoch"], state["step"]
    fits = epoch <= epochs and len(state["history"]) == epoch and epoch*steps <= step <= (epoch + 1)*steps
    if not fits or len(state["losses"]) != step - epoch*steps:
        raise ValueError("of another phase")


# %%
state = {
    "epoch": 0,
    "step": 3,
    "history": [],
    "losses": [0.5]*3,
    "skipped": 0,
    "in_a_row": 0,
    "pieces": 1,
    "ema_steps": 3,
    "scaler": {},
    "method": {},
    "opt": {"state": {}, "param_groups": []},
}
check_progress(state, epochs=2, steps=5)
for wrong in ({"step": 7}, {"losses": [0.5, "x", 1.0]}, {"pieces": 0}):
    try: check_progress(state | wrong, 2, 5)
    except (Unexpected, ValueError) as e: print(e)


# %%
#| export
def check_moments(state: dict[str, Any], optimiser: torch.optim.Optimizer) -> None:
    "Raises unless the optimiser's moments have the shapes of its weights, which PyTorch does not look at."
    weights = [p for group in optimiser.param_groups for p in group["params"]]
    for i, kept in state["opt"]["state"].items():
        moments = [kept[name] for name in ("exp_avg", "exp_avg_sq")]
        odd = [m for m in moments if m.shape != weights[i].shape or not m.is_floating_point()]
        if odd or kept["step"].numel() != 1:
            raise ValueError("of another network")


# %%
net, other = nn.Linear(2, 3), nn.Linear(2, 4)
optimisers = [torch.optim.AdamW(n.parameters()) for n in (net, other)]
net(torch.ones(1, 2)).sum().backward()
optimisers[0].step()
state = {"opt": optimisers[0].state_dict()}
check_moments(state, optimisers[0])
try: check_moments(state, optimisers[1])
except ValueError as e: print(e)
