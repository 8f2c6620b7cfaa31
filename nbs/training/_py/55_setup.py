# %% [markdown]
# # Setup
#
# > What all phases of a run have in common: schedule, precision, augmentation, seed.

# %%
#| default_exp training.setup

# %%
#| export
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ctseg.core.device import PRECISIONS, DevicePlan, pick_device
from ctseg.core.errors import InputError
from ctseg.core.settings import Settings, setting
from ctseg.data.augment import NO_AUGMENT
from ctseg.data.slices import SliceSet
from ctseg.training.deadline import Deadline

if TYPE_CHECKING:
    from accelerate import Accelerator  # loaded where a training begins; predicting does without

# %%
#| hide
import pandas as pd
from fastcore.test import test_eq

from ctseg.core.settings import describe


# %% [markdown]
# The schedule decides how long and how fast a network learns. Training is measured in passes over the *annotated* images, so that methods with and without further images take equally many steps.

# %%
#| export
class ScheduleSettings(Settings):
    "How long and how fast a network learns."
    epochs: int = setting(90, "passes over the annotated images, not iterations, in each phase", low=1)
    batch_size: int = setting(8, "images a step, of all processes together", low=1)
    lr: float = setting(2e-3, "peak learning rate", low=0)
    encoder_lr: float = setting(0.0, "peak rate of a pretrained encoder; 0: as the rest", low=0)
    weight_decay: float = setting(1e-2, "of the optimizer, AdamW", low=0)
    warmup: float = setting(0.1, "share of the steps in which the rate rises", low=0, high=1)
    clip: float = setting(1.0, "largest gradient norm; 0: any", low=0)
    ema: float = setting(0.99, "decay of the averaged weights", low=0, high=1)
    skip_limit: int = setting(10, "so many steps in a row without a finite loss end the run", low=1)


# %%
pd.DataFrame(
    [(i.name, i.default, i.expected, i.meaning) for i in describe(ScheduleSettings)],
    columns=["setting", "default", "expected", "meaning"],
)


# %% [markdown]
# Other settings change how the same computation is carried out.

# %%
#| export
class ComputeSettings(Settings):
    "How the same computation is carried out on a machine."
    precision: str = setting(
        "auto", "of the arithmetic, mixed below fp32 as in AMP; auto: the device's own", choices=PRECISIONS)
    pieces: int = setting(1, "parts a batch is computed in, gradients accumulated, to save memory", low=1)
    channels_last: bool = setting(True, "memory layout of images, faster on most devices")
    compile: bool = setting(False, "torch.compile: slow to start, then faster")


# %%
for info in describe(ComputeSettings):
    print(f"{info.name} = {info.default}: {info.meaning} ({info.expected})")


# %% [markdown]
# `Setup` adds what is no setting: the device, the held-out slices, the folder, the deadline. A notebook can make one without any recipe.

# %%
#| export
@dataclass(frozen=True)
class Setup:
    "What all phases of a run have in common."
    schedule: ScheduleSettings = ScheduleSettings()
    compute: ComputeSettings = ComputeSettings()
    augment: Callable = NO_AUGMENT            # augment(batch, generator, classes) -> Batch
    holdout: SliceSet | None = None           # scored after every epoch
    image_size: int | None = None             # the network's; None: the images' own
    presence: float = 0.0                     # weight of the presence head's loss; 0: no such head
    rare_power: float = 0.0                   # see `rare_weights`; 0: all images alike
    seed: int = 0
    plan: DevicePlan = field(default_factory=lambda: pick_device("cpu"))
    folder: Path | None = None                # of checkpoints, with a folder for each phase; None keeps none
    deadline: Deadline | None = None
    progress: bool = True                     # show a bar
    teach: Callable | None = None             # teach(logits, view, loss): a loss by an earlier network
    memory: float | None = None               # bytes of slices that may be on the device; None: a quarter


# %%
setup = Setup(ScheduleSettings(epochs=3, lr=5e-3), progress=False)
print(setup.schedule, setup.compute, setup.plan.precision)


# %% [markdown]
# Mixed precision, gradient scaling and the averaging of gradients over processes are the business of [accelerate](https://huggingface.co/docs/accelerate). It keeps one state a process, so another precision means starting it afresh. It reads variables of the environment each time. Buffers need no broadcasting, because [synchronised statistics](../core/60_parallel.ipynb) are equal anyway.

# %%
#| export
def end_other_state(plan: DevicePlan, mixed: str) -> None:
    "Forget accelerate's state if it is of another device or precision; `mixed`: accelerate's word for the precision."
    from accelerate.state import AcceleratorState, is_initialized
    if not is_initialized(): return
    running = AcceleratorState()
    if running.mixed_precision != mixed or running.device.type != plan.device.type:
        AcceleratorState._reset_state(True)


# %%
#| export
def make_accelerator(plan: DevicePlan) -> "Accelerator":
    """An `Accelerator` for the planned device and precision; replaces one with other settings.

    Started by torchrun, it connects the processes. `InputError` for variables that it cannot use."""
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
    mixed = {"fp32": "no"}.get(plan.precision, plan.precision)
    if plan.device.type == "cuda":
        torch.cuda.set_device(plan.device)  # accelerate says "cuda", which is the current card
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=2))  # process 0 may choose a rule for a while
    handlers = [patience, DistributedDataParallelKwargs(broadcast_buffers=False)]
    try:
        end_other_state(plan, mixed)
        return Accelerator(mixed_precision=mixed, cpu=plan.device.type == "cpu", kwargs_handlers=handlers)
    except (ValueError, ImportError) as e:  # an unknown word, or DeepSpeed is missing
        remedy = "look at the variables ACCELERATE_… of the environment, and at what the launcher has set"
        raise InputError(f"accelerate does not start: {e}; {remedy}") from None


# %%
acc = make_accelerator(setup.plan)
test_eq((acc.device.type, acc.mixed_precision, acc.num_processes), ("cpu", "no", 1))
print(acc.device, acc.mixed_precision)
