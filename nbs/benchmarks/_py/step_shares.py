# %% [markdown]
# # Where does the time of a training step go?
#
# > Network, optimiser, data, augmentation and bookkeeping: their shares of a step of the Attention U-Net and of a pretrained encoder's network.
#
# - skip_showdoc: true

# %% [markdown]
# **Question.** How much of a step is not the network's work?
#
# **Answer.** Little: data, augmentation and bookkeeping take 0.2 to 0.3 % of a step of the Attention U-Net at its full width, and 2 to 3 % with the light encoder. A narrower network makes their share larger; that was not measured here.
#
# ## How it was measured
#
# Recipe `marginal-log` on `data_sample`, one thread of an Intel Xeon with AMX, beside other work; processor time, the median over the steps without the first five. bfloat16 is what `precision=auto` takes on a processor that multiplies it; the network's part is smaller then, and the others' shares are larger.

# %%
import contextlib
import platform
import tempfile
import time
import warnings
from collections import defaultdict

import pandas as pd
import torch

import ctseg
from ctseg.core.device import pick_device
from ctseg.runs.recipe import apply_settings
from ctseg.training import step as step_module
from ctseg.training.ema import EMA
from ctseg.training.loop import Snapshot, Trainer

torch.set_num_threads(1)
print(f"Python {platform.python_version()}, torch {torch.__version__}, {pick_device('cpu')}")

# %%
spent = defaultdict(float)
steps = []


def timed(kind, name: str, part: str):
    "Add the processor time of a method or function to that of a part, for as long as the context lasts."
    plain = getattr(kind, name)
    def spy(*args, **options):
        begin = time.process_time()
        result = plain(*args, **options)
        spent[part] += time.process_time() - begin
        return result
    return kind, name, plain, spy


def whole_step(self, index, plain=Trainer.step):
    "A step, and what each part of it took."
    spent.clear()
    begin = time.process_time()
    loss = plain(self, index)
    steps.append(dict(spent) | {"step": time.process_time() - begin})
    return loss


PARTS = [
    timed(step_module, "make_views", "data and augmentation"),
    timed(step_module, "piece_loss", "forward and loss"),
    timed(Snapshot, "__init__", "snapshot of the buffers"),
    timed(EMA, "update", "running average"),
]


def shares(*settings: str) -> dict:
    "Milliseconds of a step and its parts in the median."
    steps.clear()
    recipe = apply_settings(ctseg.get_recipe("marginal-log"), [*settings, "tune_rule=False"])
    with contextlib.ExitStack() as stack:
        for kind, name, plain, spy in PARTS:
            setattr(kind, name, spy)
            stack.callback(setattr, kind, name, plain)
        Trainer.step, plain_step = whole_step, Trainer.step
        stack.callback(setattr, Trainer, "step", plain_step)
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        ctseg.fit("../../data_sample", recipe, f"{folder}/run", device="cpu", progress=False)
    table = 1000*pd.DataFrame(steps[5:]).median()
    known = table.drop("step")
    table["backward, optimiser and the rest"] = table["step"] - known.sum()
    return table.to_dict()


# %%
NETWORKS = {
    "attunet, 64 px, batch 16": ["batch_size=16", "epochs=2"],
    "lite0, 128 px, batch 8": [
        "model=unet:tf_efficientnet_lite0", "pretrained=False", "image_size=128", "epochs=1",
    ],
}
rows = {}
for name, settings in NETWORKS.items():
    for precision in ("fp32", "bf16"):
        rows[f"{name}, {precision}"] = shares(*settings, f"precision={precision}")
table = pd.DataFrame(rows).T
table.round(1)

# %%
share = table.div(table["step"], axis=0)*100
OURS = ["data and augmentation", "snapshot of the buffers"]
share["data, augmentation, bookkeeping"] = share[OURS].sum(axis=1)
share.drop(columns="step").round(1)

# %% [markdown]
# ## What memory costs
#
# A block of more than 32 MB is asked of the system at every operation and given back, and each of its pages is filled with zeros first. `ctseg` [keeps what is freed](../core/49_allocator.ipynb) instead while it trains or predicts. Milliseconds of processor time, Attention U-Net of width 16 in bfloat16 unless said otherwise, the median of turns within one process, one thread of an AMD EPYC in a virtual machine, where a new page takes about 2 µs:
#
# | | usual | kept | kept/usual | new pages: usual, kept |
# |---|---|---|---|---|
# | step, 64 px, batch 16, supervised | 132 | 132 | 1.00 | 514, 106 |
# | step, 64 px, batch 16, second phase of `ctseg` | 421 | 421 | 1.00 | 1,600, 1,600 |
# | step, 256 px, batch 8, supervised | 837 | 812 | 0.97 | 20,000, 9,000 |
# | step, 256 px, batch 8, second phase | 3,463 | 2,909 | 0.84 | 313,000, 21,000 |
# | prediction of 16 images, 256 px, by PyTorch | 699 | 587 | 0.84 | 58,000, 39 |
# | the same in float32 | 1,182 | 899 | 0.76 | 171,000, 20 |
# | `masked` alone, 8x54x256x256, float32 | 212 | 156 | 0.74 | 28,000, 51 |
# | `ce-dice` alone | 152 | 97 | 0.64 | 28,000, 0 |
#
# The weights after both phases are the same to the last bit. The largest resident memory of `fit` on `data_sample` was 770 MB instead of 783 at 64 pixels, and 2,907 instead of 2,633 at 256: kept blocks do not always fit the next request.
#
# Huge pages for large tensors (`THP_MEM_ALLOC_ENABLE=1`, with `madvise` in `/sys/kernel/mm/transparent_hugepage/enabled`) save the same pages and no time: the zeros remain. Steps took 0.97 to 1.00 of the usual time with them, and 0.98 to 1.02 of that of kept memory. So they are not used.
