# %% [markdown]
# # Checkpoints
#
# > Everything the next step depends on, written whole, and found again after any accident.

# %%
#| default_exp training.checkpoints

# %%
#| export
import copy
import io
import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ctseg.core.atomic import atomic_path, remove
from ctseg.core.paths import refuse_special, refuse_unread
from ctseg.models.base import load_weights
from ctseg.models.sealed import seal

# %%
#| hide
import tempfile

from fastcore.test import test_eq

from ctseg.core.errors import InputError


# %% [markdown]
# Weights go to [sealed](../models/05_sealed.ipynb) safetensors files, and everything else is loaded with `weights_only=True`. A checkpoint from the internet therefore cannot run code.

# %%
#| export
def save_weights(model: nn.Module, path: str | Path) -> None:
    "Write the model's weights and buffers as safetensors, whole or not at all."
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    with atomic_path(path) as tmp, open(tmp, "wb") as f:  # by Python, whose errors tell a full disk
        f.writelines(seal(tensors))


# %%
def toy_model(width=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width))

model, twin = toy_model(), toy_model()
with torch.no_grad(): twin[0].weight.zero_()
with tempfile.TemporaryDirectory() as d:
    save_weights(model, Path(d)/"a.safetensors")
    load_weights(twin, Path(d)/"a.safetensors")
    assert torch.equal(twin[0].weight, model[0].weight)
    try: load_weights(toy_model(width=5), Path(d)/"a.safetensors")
    except InputError as e: print(str(e).replace(d, "…"))

# %% [markdown]
# The other state is a zip archive. It holds a checksum of each part, which PyTorch does not compare.

# %%
#| export
State = dict[str, Any]  # tensors and plain values

def read_state(path: Path) -> State:
    "The state in a file of `torch.save`; raises in one of many ways for a damaged one. Runs no code."
    refuse_special(path)
    with zipfile.ZipFile(path) as archive:
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
        if packed: raise ValueError("compressed, as torch never does it")
        damaged = archive.testzip()
    if damaged: raise ValueError(f"{damaged} is damaged")
    content = path.read_bytes()
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if not isinstance(state, dict): raise ValueError("not a dictionary")
    return state


# %%
with tempfile.TemporaryDirectory() as d:
    torch.save({"moments": torch.ones(50)}, Path(d)/"state.pt")
    content = bytearray((Path(d)/"state.pt").read_bytes())
    content[content.find(torch.ones(2).numpy().tobytes()) + 3] ^= 1
    (Path(d)/"state.pt").write_bytes(content)
    print("PyTorch loads", torch.load(Path(d)/"state.pt", weights_only=True)["moments"].unique())
    try: read_state(Path(d)/"state.pt")
    except ValueError as e: print(e)

# %% [markdown]
# A checkpoint is loaded whole or not at all. If one of its files is damaged, or the caller cannot go on from its state, the models stay as they were.

# %%
#| export
Models = dict[str, nn.Module]  # by the names of their files
Use = Callable[[State], None]  # goes on from a state, and raises if that is impossible

def no_use(state: State) -> None:
    "Takes any state."

def read_checkpoint(path: Path, models: Models, remedy: str, use: Use = no_use) -> State | None:
    "Load the models of a checkpoint and `use` its other state; None with a warning that ends with `remedy` if it is damaged. `Unread` if the system does not give it."
    before = [copy.deepcopy(model.state_dict()) for model in models.values()]
    try:
        state = read_state(path/"state.pt")
        for name, model in models.items():
            load_weights(model, path/f"{name}.safetensors")
        use(state)
    except Exception as e:  # each way of being damaged has its own
        for model, old in zip(models.values(), before):
            model.load_state_dict(old)
        refuse_unread(path, e)  # not to be trained again
        warnings.warn(f"{path} is damaged, or of another network ({type(e).__name__}); {remedy}")
        return None
    return state


# %%
with tempfile.TemporaryDirectory() as d, warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    test_eq(read_checkpoint(Path(d), {"model": model}, "training again"), None)
print(str(caught[0].message).replace(d, "…"))

# %% [markdown]
# The folder of a checkpoint is renamed into place when it is complete.

# %%
#| export
EARLIER = "going back to the checkpoint before it"  # what is done instead of a damaged checkpoint
AGAIN = "training this phase again"
KEPT = 2  # checkpoints of a phase: the newest, and one before it

def write_checkpoint(path: Path, models: Models, state: State) -> None:
    "Write the models and the state as one folder, whole or not at all."
    whole = io.BytesIO()
    torch.save(state, whole)
    with atomic_path(path) as tmp:
        tmp.mkdir()
        for part, model in models.items():
            save_weights(model, tmp/f"{part}.safetensors")
        (tmp/"state.pt").write_bytes(whole.getbuffer())


# %%
with tempfile.TemporaryDirectory() as d:
    write_checkpoint(Path(d)/"step-1", {"model": model}, {"step": 1})
    print(sorted(p.name for p in (Path(d)/"step-1").iterdir()))
    test_eq(read_checkpoint(Path(d)/"step-1", {"model": twin}, ""), {"step": 1})


# %% [markdown]
# `Checkpoints` are those of one phase. One earlier checkpoint is kept in case the newest turns out damaged.

# %%
#| export
class Checkpoints:
    "The checkpoints of a phase: `step-0000120/` has all that is needed after 120 steps, `final/` what remains."
    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def saved(self) -> list[Path]:
        "The unfinished training, newest first."
        return sorted(self.folder.glob("step-*"), reverse=True)

    def save(self, step: int, models: Models, state: State) -> None:
        "Keep the state after `step` steps; delete the oldest."
        write_checkpoint(self.folder/f"step-{step:07d}", models, state)
        self.drop_steps(KEPT)

    def finish(self, models: Models, state: State) -> None:
        "Keep what later phases and predictions need."
        write_checkpoint(self.folder/"final", models, state)
        self.drop_steps()

    def drop_steps(self, kept: int = 0) -> None:
        "Delete the checkpoints of unfinished training but the newest."
        for old in self.saved()[kept:]: remove(old)

    def load(self, models: Models, use: Use = no_use) -> State | None:
        "Load the newest checkpoint that is whole and of use; its state, or None."
        paths = self.saved()
        for path in paths:
            state = read_checkpoint(path, models, AGAIN if path == paths[-1] else EARLIER, use)
            if state is not None: return state
        return None

    def final(self, models: Models, use: Use = no_use) -> State | None:
        "Load a finished phase; its state, or None."
        path = self.folder/"final"
        return read_checkpoint(path, models, AGAIN, use) if os.path.lexists(path) else None


# %% [markdown]
# A kill between the two halves of `finish` leaves checkpoints beside the finished phase. Who goes on with the run deletes them.

# %%
with tempfile.TemporaryDirectory() as d:
    for name in ("step-0000120", "final"): (Path(d)/name).mkdir()
    Checkpoints(d).drop_steps()
    test_eq([p.name for p in Path(d).iterdir()], ["final"])

# %%
with tempfile.TemporaryDirectory() as d:
    checkpoints = Checkpoints(d)
    for step in (10, 20, 30): checkpoints.save(step, {"model": model}, {"step": step})
    print([p.name for p in checkpoints.saved()])
    (Path(d)/"step-0000030"/"model.safetensors").write_bytes(b"cut short")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        test_eq(checkpoints.load({"model": twin}), {"step": 20})
    print(str(caught[0].message).replace(d, "…"))
    checkpoints.finish({"model": model}, {"step": 40})
    test_eq((checkpoints.final({"model": twin}), checkpoints.saved()), ({"step": 40}, []))
