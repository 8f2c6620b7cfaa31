# %% [markdown]
# # bfloat16 on a processor
#
# > How much faster training steps and predictions are in bfloat16 than in float32 on this processor, by image size, and whether the scores stay the same.
#
# - skip_showdoc: true

# %% [markdown]
# **The question.** Some processors multiply bfloat16 themselves (AMX, AVX512-BF16). When is that faster, and does it cost accuracy?
#
# **The answer**, on a processor with AVX512-BF16 and without AMX: predicting is 1.5 to 2.4 times as fast. A training step is 1.4 to 1.9 times as fast with the Attention U-Net, more so the larger the images; a small encoder gains from 128 pixels on and loses up to a fifth below. The masks are the same on more than 99.5 % of all pixels, and the Dice moves by 0.003 at most, up or down. So [`precision=auto`](../core/50_device.ipynb) takes bfloat16 on such processors. The tables of [real CT](realct_semi.ipynb) were trained in it too.

# %%
import contextlib
import platform
import time
from pathlib import Path

import pandas as pd
import torch

from ctseg.core.device import computes_bf16
from ctseg.core.optional import import_timm
from ctseg.models import create_model

torch.set_num_threads(1)
import_timm()
print(f"torch {torch.__version__}, {platform.machine()}; computes bfloat16: {computes_bf16()}")

# %% [markdown]
# ## Time
#
# Both precisions take turns, and the fastest of five turns of each counts, in processor time of one thread. Images lie in channels-last memory, as in the training loop. The loss here is a plain one: what is timed is the network.

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
        step = fastest(lambda: train_step(model, images, optimiser))
        model.eval()
        with torch.inference_mode(): predict = fastest(lambda: model(images))
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
# The networks of [another page](large_slices.ipynb), three seeds each, trained in bfloat16, and their test slices drawn in both precisions: mean Dice, and the share of pixels on which the masks are the same.

# %%
pd.read_csv(Path("results/precision_large.csv")).style.format(
    {"fp32": "{:.4f}", "bf16": "{:.4f}", "same": "{:.3%}"}).hide(axis="index")
