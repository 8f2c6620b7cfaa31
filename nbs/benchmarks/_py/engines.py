# %% [markdown]
# # Which program predicts fastest on a processor?
#
# > PyTorch, OpenVINO and ONNX Runtime with the same two networks: milliseconds an image, what it takes to begin, and whether the masks are the same.
#
# - skip_showdoc: true

# %% [markdown]
# **Question.** Should `ctseg predict` and `ctseg segment` use [another engine](../inference/25_engine.ipynb) than PyTorch?
#
# **Answer.** For many images, by a wish of your own: `--engine openvino`. On this processor, which computes bfloat16 but has no AMX, OpenVINO is 1.2 to 1.4 times as fast as PyTorch in the same precision, and 1.1 to 1.3 times in float32; ONNX Runtime, which has float32 only, is about as fast as OpenVINO in it. It takes up to a second to begin. That pays from 75 or 350 slices of 256 pixels on, which is one scan or a few, and from 700 to 1,900 of 64 pixels. The masks are [the same](#are-the-masks-the-same) in float32, and on 99.98 % of the pixels in bfloat16.
#
# So **PyTorch stays the default of both commands**. `predict` and `segment` give the same voxels only with the same engine, and a default that depended on what is installed, or on a measurement, would give other voxels on another machine, for a quarter of the time. Both take the same `--engine`.
#
# **The processor is what stands in the way of more.** We had aimed at 2.5 times PyTorch's float32 without bfloat16, and 8 times with it; it is 1.1 to 1.3, and 2.1 to 2.3. PyTorch's float32 already reaches 0.53 to 0.64 of the multiply-adds that this processor makes at best ([below](#what-the-processor-can-do)), so an engine without a single lost cycle would be 1.6 to 1.9 times as fast; in bfloat16, which is worth a factor of two here, 3.2 to 3.9 times. Of that OpenVINO reaches 0.57 to 0.72. The eight was measured on a processor with AMX, which multiplies small matrices by one instruction.
#
# ## How it was measured
#
# One thread; processor time, the least of four rounds, in which the engines take turns. PyTorch has the images and weights in channels-last memory, four images of 256 pixels at a time and [the memory that it frees](../core/49_allocator.ipynb), as prediction has them. Random weights: speed does not depend on them.

# %%
import importlib.metadata
import platform
import tempfile
import time
import warnings
from unittest import mock

import numpy as np
import pandas as pd
import torch

import ctseg
from ctseg.core.allocator import memory_kept
from ctseg.core.device import computes_bf16, pick_device
from ctseg.core.optional import import_timm
from ctseg.data.challenge import read_challenge
from ctseg.data.slices import SliceSet
from ctseg.inference import engine as engine_module
from ctseg.inference.engine import EngineNetwork, compile_onnx, compile_openvino
from ctseg.inference.loop import in_pieces
from ctseg.metrics.challenge import dice_table, mean_dice
from ctseg.models import create_model
from ctseg.models.base import place
from ctseg.models.costs import multiply_adds
from ctseg.prediction.predictor import load_predictor, predict_masks
from ctseg.runs.recipe import apply_settings

torch.set_num_threads(1)
import_timm()
packages = ("torch", "openvino", "onnxruntime")
versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
machine = f"Python {platform.python_version()}, {versions}, {platform.machine()};"
print(machine, "computes bfloat16:", computes_bf16())

# %%
NETWORKS = {
    "attunet, width 16": lambda: create_model("attunet", 1, 20, width=16),
    "unet:tf_efficientnet_lite0": lambda: create_model("unet:tf_efficientnet_lite0", 1, 20, pretrained=False),
}
COMPILED = {"OpenVINO": (compile_openvino, "fp32"), "OpenVINO, bf16": (compile_openvino, "bf16"),
            "ONNX Runtime": (compile_onnx, "fp32")}


def timed(action) -> float:
    "Processor seconds of an action."
    begin = time.process_time()
    action()
    return time.process_time() - begin


def engines_of(network, size: int) -> tuple[dict, dict]:
    "Ways to ask a network, and the seconds that each takes to begin."
    asks, begins = {}, {}
    for name, precision in (("PyTorch", "fp32"), ("PyTorch, bf16", "bf16")):
        by_torch = EngineNetwork(network, "openvino", pick_device("cpu", precision)).by_torch
        asks[name] = lambda images, ask=by_torch: in_pieces(lambda some: ask(some)[0], images)
    for name, (compiler, precision) in COMPILED.items():
        begin = time.process_time()
        graph = compiler(network, (size, size), precision)
        begins[name] = time.process_time() - begin
        asks[name] = lambda images, ask=graph: ask(images.numpy())
    return asks, begins


def measured(network, size: int, batch: int, rounds: int = 4) -> tuple[dict, dict]:
    "Milliseconds an image of each engine, and its seconds to begin."
    asks, begins = engines_of(network, size)
    images = torch.rand(batch, 1, size, size)
    best = {name: float("inf") for name in asks}
    for turn in range(rounds + 1):
        for name, ask in asks.items():
            took = timed(lambda: ask(images))
            if turn: best[name] = min(best[name], 1000*took/batch)
    return best, begins


speed, starts = {}, {}
for name, make in NETWORKS.items():
    network = place(make(), "cpu").eval()
    for size, batch in ((64, 16), (256, 8)):
        with memory_kept():  # as prediction has it
            speed[name, size], starts[name, size] = measured(network, size, batch)
speed = pd.DataFrame(speed)
speed.round(1)

# %% [markdown]
# Times faster than PyTorch in float32:

# %%
(1/speed.div(speed.loc["PyTorch"])).round(2)

# %% [markdown]
# Images a second:

# %%
(1000/speed).round(0).astype(int)

# %% [markdown]
# Seconds to begin, once for each size of image: the network is written as a graph and compiled. It is not kept for the next call: a start of Python with PyTorch takes longer.

# %%
starts = pd.DataFrame(starts)
starts.round(1)


# %% [markdown]
# ## What the processor can do
#
# The multiply-adds a second of PyTorch's best case here, a product of two matrices or a 3x3 convolution of 64 to 64 channels, whichever is faster: in each precision, measured in the same process. No engine can be much faster than that.

# %%
def fastest(action, rounds: int = 5) -> float:
    "Processor seconds of an action, the least of some rounds after one to warm up."
    action()
    return min(timed(action) for _ in range(rounds))

def ceiling(kind: torch.dtype) -> float:
    "Billions of multiply-adds a second, of the faster of the two."
    a = torch.rand(1024, 1024).to(kind)
    convolution = torch.nn.Conv2d(64, 64, 3, padding=1).to(kind, memory_format=torch.channels_last)
    x = torch.rand(2, 64, 64, 64).to(kind, memory_format=torch.channels_last)
    with torch.inference_mode(), memory_kept():
        by_matrix = 1024**3/fastest(lambda: a@a)
        by_convolution = 2*64**4*9/fastest(lambda: convolution(x))
    return max(by_matrix, by_convolution)/1e9

CEILING = {"fp32": ceiling(torch.float32), "bf16": ceiling(torch.bfloat16)}
print({precision: f"{rate:.0f} billion a second" for precision, rate in CEILING.items()})
print(f"bf16 over fp32: {CEILING['bf16']/CEILING['fp32']:.2f}")

# %% [markdown]
# The share of this ceiling that each engine reaches with a whole network, whose norms, activations and enlargements are no multiply-adds:

# %%
work = pd.Series({key: multiply_adds(NETWORKS[key[0]](), key[1]) for key in speed.columns})
rates = 1/speed.div(work/1e6)
limits = {name: CEILING["bf16" if "bf16" in name else "fp32"] for name in speed.index}
rates.div(pd.Series(limits), axis=0).round(2)

# %% [markdown]
# And how many times faster than PyTorch in float32 an engine could be at all, if it reached the ceiling:

# %%
possible = {precision: rate/rates.loc["PyTorch"] for precision, rate in CEILING.items()}
pd.DataFrame(possible).T.round(2)

# %% [markdown]
# What else was tried at 256 pixels, by PyTorch and with four images at a time: BatchNorm folded into the convolution before it takes 0.92 and 0.90 of the time in float32, 0.88 and 0.84 in bfloat16 (Attention U-Net, EfficientNet-Lite0); weights that are kept in bfloat16 besides, 0.99 and 0.98 of that. Folding rounds differently, so other voxels would come out, and it must know in which order a network calls its layers. We do without.

# %% [markdown]
# ## From how many images on does it pay?
#
# The seconds to begin, divided by what an image saves against PyTorch in the precision that `auto` takes on this processor. The first batch, which PyTorch answers as well, is not counted.

# %%
precision = ", bf16" if computes_bf16() else ""
saved = (speed.loc[f"PyTorch{precision}"] - speed.loc[f"OpenVINO{precision}"])/1000
(starts.loc[f"OpenVINO{precision}"]/saved).where(saved > 0).round(0)


# %% [markdown]
# ## Are the masks the same?
#
# Two networks that have learnt a little from `data_sample` draw its test slices by each engine: an Attention U-Net of width 8 at 64 pixels, and the U-Net on EfficientNet-Lite0 with slices enlarged to 128, which OpenVINO gets one by one here, as it gets those of 256 otherwise. They were trained in the precision that `auto` takes on this processor; the decision rule is that of their run.

# %%
def enlarged(slices: SliceSet, times: int) -> SliceSet:
    "The same slices with each pixel as a square of pixels."
    images, masks = (array.repeat(times, 1).repeat(times, 2) for array in (slices.images, slices.masks))
    return SliceSet(images, masks, slices.known, slices.names, slices.groups, slices.classes)

def drawn(train: SliceSet, test: SliceSet, *settings: str) -> dict:
    "Masks of the test slices by engine and precision, of a network that is trained first."
    recipe = apply_settings(ctseg.get_recipe("marginal-log"), list(settings))
    masks = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ctseg.fit(train, recipe, f"{folder}/run", device="cpu", progress=False)
        for precision in ("fp32", "bf16"):
            predictor = load_predictor(f"{folder}/run", pick_device("cpu", precision))
            for engine in ("torch", "openvino", "onnx"):
                if (engine, precision) == ("onnx", "bf16"): continue
                masks[engine, precision] = predict_masks(predictor.by_engine(engine), test.images)
    return masks

train, test = read_challenge("../../data_sample"), read_challenge("../../data_sample", "test")
train = train[np.flatnonzero(train.labelled)]
LITE0 = ["model=unet:tf_efficientnet_lite0", "batch_size=8", "epochs=8"]
tested = {"attunet, 64 px": (test, drawn(train, test, "width=8", "epochs=12"))}
with mock.patch.object(engine_module, "ALONE", 2**14):
    larger = enlarged(test, 2)
    tested["lite0, 128 px, one by one"] = larger, drawn(enlarged(train, 2), larger, *LITE0)

# %%
rows = []
for network, (truth, masks) in tested.items():
    for (engine, precision), found in masks.items():
        table = dice_table(found, truth.masks, len(truth.classes))
        same = (found == masks["torch", precision]).mean()
        same_in_fp32 = (found == masks["torch", "fp32"]).mean()
        dice = mean_dice(np.where(truth.known, table, np.nan))
        facts = {"network": network, "engine": engine, "precision": precision}
        shares = {"same pixels as PyTorch": same, "as PyTorch in fp32": same_in_fp32}
        rows.append(facts | shares | {"Dice": dice})
agreement = pd.DataFrame(rows).set_index(["network", "engine", "precision"])
agreement.round(5)

# %% [markdown]
# In bfloat16 each engine rounds at other places, and each differs from float32 as much as from the other. The Dice moves by 0.0001 with the better network and by 0.006 with the weaker, where a structure of few pixels that one draws and the other does not counts as a whole. A network that is sure of nothing shows more: after 60 steps at 256 pixels the one on EfficientNet-Lite0 reached a Dice of 0.208 in float32 by every engine, with all pixels alike; in bfloat16 PyTorch had 0.201 and OpenVINO, one by one, 0.207, with 96.8 % of the pixels alike.

# %% [markdown]
# ## How many images at a time
#
# Before memory that is freed [was kept](../core/49_allocator.ipynb), arrays of more than 32 MB were asked of the system and given back at every operation, a third of the time of sixteen images of 256 pixels. So prediction gives PyTorch four such images at a time, and OpenVINO one, by a graph compiled for one. Milliseconds of processor time an image then, the least of two or three rounds in turn, one thread, on a busy machine:
#
# | 256x256, batches of 16 | Attention U-Net, width 16 | `unet:tf_efficientnet_lite0` |
# |---|---|---|
# | PyTorch, float32: all at once, 4 at a time | 92.5, 58.0 | 78.0, 58.3 |
# | PyTorch, bfloat16 | 46.1, 29.8 | 42.8, 29.6 |
# | OpenVINO, float32: all at once, one by one | 58.1, 41.7 | 38.8, 37.0 |
# | OpenVINO, bfloat16 | 39.3, 21.1 | 34.5, 27.6 |
#
# With 64x64 pixels sixteen images at a time are best: 4.4 ms against 10.1 one by one (PyTorch, float32), and 2.7 against 3.7 (OpenVINO). PyTorch's logits are the same to the last bit in bfloat16, and not in float32, where they differ between sizes of a batch in any case. With memory kept PyTorch needs 1.03 (float32) and 1.09 (bfloat16) times as long for four at a time as for sixteen of 256 pixels; what remains of the reason is a quarter of the memory.
