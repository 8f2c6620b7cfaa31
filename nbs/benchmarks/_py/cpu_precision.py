# %% [markdown]
# # bfloat16 on a processor
#
# > How much faster training steps and predictions are in bfloat16 than in float32 on this processor, by image size, and whether the scores stay the same.
#
# - skip_showdoc: true

# %% [markdown]
# **The question.** Some processors multiply bfloat16 themselves (AMX, AVX512-BF16). When is that faster, and does it cost accuracy?
#
# **The answer**, on an Intel Xeon with AMX: predicting is 1.4 to 2.8 times as fast. A training step is 1.5 to 2.5 times as fast with the Attention U-Net, more so from 128 pixels on, and 1.1 to 1.8 times with a small encoder. On an earlier processor, with AVX512-BF16 and without AMX, it was 1.5 to 2.4 for predicting and 1.4 to 1.9 for a step of the Attention U-Net. The masks are the same on more than 99.5 % of all pixels, and the Dice moves by 0.003 at most, up or down. So [`precision=auto`](../core/50_device.ipynb) takes bfloat16 on such processors. The tables of [real CT](realct_semi.ipynb) were trained in it too.
#
# The small encoder used to lose: 0.84 to 1.38 times as fast in a step on this processor. Its depthwise convolutions have no fast backward pass in bfloat16, so they are [trained in float32](../models/10_base.ipynb#depthwise-convolutions-in-bfloat16) now.

# %%
import contextlib
import time
from pathlib import Path

import pandas as pd
import torch

from ctseg.core.allocator import memory_kept
from ctseg.core.device import describe_processor
from ctseg.core.optional import import_timm
from ctseg.models import create_model

torch.set_num_threads(1)
import_timm()
print(f"torch {torch.__version__}, {describe_processor()}")

# %% [markdown]
# ## Time
#
# Both precisions take turns, and the fastest of five turns of each counts, in processor time of one thread. Images lie in channels-last memory, and [freed memory is kept](../core/49_allocator.ipynb), as in the training loop. The loss here is a plain one: what is timed is the network.

# %%
NETWORKS = {
    "attunet, width 16": lambda: create_model("attunet", 1, 8, width=16),
    "unet:tf_efficientnet_lite0": lambda: create_model("unet:tf_efficientnet_lite0", 1, 8, pretrained=False),
}

def autocast(precision):
    "bfloat16 as the training loop asks for it, or nothing."
    if precision == "fp32": return contextlib.nullcontext()
    return torch.autocast("cpu", torch.bfloat16)

def train_step(model, images, optimiser):
    "Forward, backward, update."
    loss = model(images).float().logsumexp(1).mean()
    loss.backward()
    optimiser.step()
    optimiser.zero_grad()

def fastest(action, turns=5):
    "Processor seconds of the fastest turn of each precision; they take turns."
    best = {"fp32": float("inf"), "bf16": float("inf")}
    for _ in range(turns):
        for precision in best:
            start = time.process_time()
            with autocast(precision): action()
            best[precision] = min(best[precision], time.process_time() - start)
    return best


# %%
rows = []
for name, make in NETWORKS.items():
    for size in (64, 96, 128, 256):
        torch.manual_seed(0)
        model = make().to(memory_format=torch.channels_last)
        optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
        images = torch.rand(8, 1, size, size).to(memory_format=torch.channels_last)
        with memory_kept(): step = fastest(lambda: train_step(model, images, optimiser))
        model.eval()
        with torch.inference_mode(), memory_kept(): predict = fastest(lambda: model(images))
        faster = {"step": step["fp32"]/step["bf16"], "prediction": predict["fp32"]/predict["bf16"]}
        rows.append({"network": name, "pixels": size, **faster})
ratios = pd.DataFrame(rows)
ratios.to_csv("results/cpu_precision.csv", index=False, float_format="%.2f")
titles = {"step": "step, times faster in bf16", "prediction": "prediction, times faster"}
ratios.rename(columns=titles).style.format(
    precision=2).hide(axis="index")

# %% [markdown]
# ## Scores
#
# The networks of [another page](large_slices.ipynb), three seeds each, trained in bfloat16, and their test slices drawn in both precisions: mean Dice, and the share of pixels on which the masks are the same. This table is from a file; it was measured on the earlier processor, before depthwise convolutions trained in float32.

# %%
pd.read_csv(Path("results/precision_large.csv")).style.format(
    {"fp32": "{:.4f}", "bf16": "{:.4f}", "same": "{:.3%}"}).hide(axis="index")
