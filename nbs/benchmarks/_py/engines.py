# %% [markdown]
# # Which program predicts fastest on a processor?
#
# > PyTorch, OpenVINO and ONNX Runtime with the same two networks: milliseconds an image, what it takes to begin, and whether the masks are the same.
#
# - skip_showdoc: true

# %% [markdown]
# **Question.** Should `ctseg predict` and `ctseg segment` use [another engine](../inference/25_engine.ipynb) than PyTorch?
#
# **Answer.** Yes, OpenVINO, where it is installed. On this processor, an Intel Xeon with AMX, it is 1.8 to 2.5 times as fast as PyTorch in bfloat16, which `auto` takes here, and 1.4 to 1.5 times in float32; ONNX Runtime, which has float32 only, 1.0 to 1.2 times. It takes one or two seconds to begin. That pays from 66 or 94 slices of 256 pixels on, which is one scan, and from 480 or 820 of 64 pixels. The masks are [the same](#are-the-masks-the-same) in float32, and on more than 99.98 % of the pixels in bfloat16.
#
# So `segment` and the Kaggle notebooks [take OpenVINO by themselves](../inference/25_engine.ipynb#which-engine) where it is installed, and `predict` does if asked by `--engine openvino` or `auto`.
#
# **Our aims are missed.** In bfloat16 we had aimed at 8 times PyTorch's float32; it is 5.3 to 5.5 with the Attention U-Net and 4.3 to 5.4 with EfficientNet-Lite0. At its best this processor makes 7.8 times as many multiply-adds in bfloat16 as in float32, so an engine without a lost cycle would be 11 to 14 times as fast; OpenVINO reaches 0.3 to 0.5 of that ([below](#what-the-processor-can-do)). The eight was set when PyTorch itself was slower, before images came four at a time in memory that is kept. In float32, where we had aimed at 2.5, it is 1.4 to 1.5, and the processor allows no more than 1.4 to 1.8: OpenVINO reaches 0.8 to 1.0 of the ceiling.
#
# On an AMD EPYC with bfloat16 and without AMX an earlier OpenVINO graph was 1.2 to 1.4 times as fast as PyTorch in the same precision, and 2.1 to 2.3 times PyTorch's float32.
#
# ## How it was measured
#
# One thread; processor time, the least of three rounds, in which the engines take turns. PyTorch has the images and weights in channels-last memory, four images of 256 pixels at a time and [the memory that it frees](../core/49_allocator.ipynb), as prediction has them. Random weights: speed does not depend on them.

# %%
import importlib.metadata
import tempfile
import time
import warnings
from unittest import mock

import numpy as np
import pandas as pd
import torch

import ctseg
from ctseg.core.allocator import memory_kept
from ctseg.core.device import computes_bf16, describe_processor, pick_device
from ctseg.core.optional import import_timm
from ctseg.data.challenge import read_challenge
from ctseg.data.slices import SliceSet
from ctseg.inference import engine as engine_module
from ctseg.inference.engine import (
    CompiledNetwork, EngineNetwork, compile_onnx, compile_openvino, engine_of, mean_difference,
)
from ctseg.inference.loop import in_pieces
from ctseg.metrics.challenge import dice_table, mean_dice
from ctseg.models import create_model, list_models
from ctseg.models.base import place
from ctseg.models.costs import multiply_adds
from ctseg.prediction.predictor import load_predictor, predict_masks
from ctseg.runs.recipe import apply_settings

torch.set_num_threads(1)
import_timm()
packages = ("torch", "openvino", "onnxruntime")
versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
print(f"{describe_processor()}, one thread; {versions}")

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


def engines_of(network, batch: int, size: int) -> tuple[dict, dict]:
    "Ways to ask a network, and the seconds that each takes to begin."
    asks, begins = {}, {}
    for name, precision in (("PyTorch", "fp32"), ("PyTorch, bf16", "bf16")):
        by_torch = EngineNetwork(network, "openvino", pick_device("cpu", precision)).by_torch
        asks[name] = lambda images, ask=by_torch: in_pieces(lambda some: ask(some)[0], images)
    for name, (compiler, precision) in COMPILED.items():
        begin = time.process_time()
        graph = compiler(network, (batch, 1, size, size), precision)
        begins[name] = time.process_time() - begin
        asks[name] = lambda images, ask=graph: ask(images.numpy())
    return asks, begins


def measured(network, size: int, batch: int, rounds: int = 3) -> tuple[dict, dict]:
    "Milliseconds an image of each engine, and its seconds to begin."
    asks, begins = engines_of(network, batch, size)
    return in_turn(asks, torch.rand(batch, 1, size, size), rounds), begins


def in_turn(asks: dict, images: torch.Tensor, rounds: int = 3) -> dict:
    "Milliseconds an image of each way to ask, the least of some rounds after one to warm up."
    best = {name: float("inf") for name in asks}
    for turn in range(rounds + 1):
        for name, ask in asks.items():
            took = timed(lambda: ask(images))
            if turn: best[name] = min(best[name], 1000*took/len(images))
    return best


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
# What else was tried at 256 pixels, by PyTorch and with four images at a time, on the EPYC: BatchNorm folded into the convolution before it takes 0.92 and 0.90 of the time in float32, 0.88 and 0.84 in bfloat16 (Attention U-Net, EfficientNet-Lite0); weights that are kept in bfloat16 besides, 0.99 and 0.98 of that. Folding rounds differently, so other voxels would come out, and it must know in which order a network calls its layers. We do without.

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
LITE0 = ["model=unet:tf_efficientnet_lite0", "batch_size=8", "epochs=3"]
tested = {"attunet, 64 px": (test, drawn(train, test, "width=8", "epochs=12"))}
with mock.patch.object(engine_module, "AT_A_TIME", 2**14):
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
# In bfloat16 each engine rounds at other places, and each differs from float32 as much as from the other. The Dice of OpenVINO differs from PyTorch's by less than 0.0001 with the first network and by 0.0014 with the second, which was trained for three epochs only; both engines are within 0.001 of float32. We had aimed at 0.001 between them.

# %% [markdown]
# ## Every network of the zoo
#
# Four images of 96 pixels, random weights, three classes. Agreement is the share of pixels with the same label as PyTorch's in float32. Nothing has been learnt here, so in bfloat16 many pixels are a draw; what counts is that OpenVINO does no worse than PyTorch. `apart` is the mean difference of its bfloat16 probabilities from PyTorch's float32, over that of PyTorch's bfloat16: the check of the first batch lets 1.5 pass, and a thousandth beside it. "Times faster" is against PyTorch in the same precision.

# %%
def same_labels(logits, expected) -> float:
    "The share of pixels at which two logits are largest in the same channel."
    return (logits.argmax(1) == expected.argmax(1)).double().mean().item()

def zoo_row(name: str) -> dict:
    "What the table says of a network."
    torch.manual_seed(0)
    settings = {"pretrained": False} if ":" in name else {}
    if name in ("uctransnet", "nnunet", "nnunet-resenc"): settings["image_size"] = 96
    network, images = place(create_model(name, 1, 4, **settings), "cpu").eval(), torch.rand(4, 1, 96, 96)
    row, exact = {}, None
    for precision in ("fp32", "bf16"):
        compiled = CompiledNetwork(network, "openvino", pick_device("cpu", precision))
        by_torch = compiled.by_torch(images)[0]
        exact = by_torch if exact is None else exact
        best = in_turn({"torch": compiled.by_torch, "openvino": compiled}, images, rounds=1)
        used, logits = engine_of(compiled) == "openvino", compiled(images)
        row[f"answers, {precision}"] = engine_of(compiled)
        row[f"{precision} agrees"] = same_labels(logits, exact)
        if precision == "bf16": row["PyTorch's bf16 agrees"] = same_labels(by_torch, exact)
        row[f"times faster, {precision}"] = best["torch"]/best["openvino"] if used else float("nan")
    graph = compiled.graphs[96, 96] or compile_openvino(network, tuple(images.shape), "bf16")
    raw = graph(images.numpy())
    row["apart"] = mean_difference(raw, [exact])/mean_difference([by_torch.numpy()], [exact])
    return row

with memory_kept(), warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of those that PyTorch answers for; the table says so
    zoo = pd.DataFrame({name: zoo_row(name) for name in list_models()}).T
faster = [column for column in zoo if "faster" in column or column == "apart"]
agrees = [column for column in zoo if "agrees" in column]
zoo.style.format("{:.2f}", subset=faster).format("{:.3%}", subset=agrees)

# %%
used = zoo["answers, fp32"] == "openvino"
assert (zoo.loc[used, "fp32 agrees"] >= .999).all()


# %% [markdown]
# One network is left to PyTorch: `dpt:vit_small_patch14_dinov2` resamples its positions by cubic interpolation with antialiasing, which OpenVINO computes in another way. In bfloat16 the difference is twice PyTorch's own rounding, and a fixed tolerance had let it through.
#
# ## How many images at a time
#
# OpenVINO in bfloat16 with a graph for a fixed number of images. Milliseconds an image, and on the last line PyTorch, which is given as many as prediction gives it.

# %%
def by_piece(name: str, size: int, batch: int) -> dict:
    "Milliseconds an image by the number of images that OpenVINO is given at once."
    network, asks = place(NETWORKS[name](), "cpu").eval(), {}
    for piece in (1, 4, 16):
        if piece > batch: continue
        with mock.patch.object(engine_module, "AT_A_TIME", piece*size*size):
            graph = compile_openvino(network, (batch, 1, size, size), "bf16")
        asks[f"OpenVINO, {piece}"] = lambda images, graph=graph: graph(images.numpy())
    by_torch = EngineNetwork(network, "openvino", pick_device("cpu", "bf16")).by_torch
    asks["PyTorch"] = lambda images: in_pieces(lambda some: by_torch(some)[0], images)
    with memory_kept():
        return in_turn(asks, torch.rand(batch, 1, size, size))

SIZES = {64: 16, 256: 8}
pieces = {(name, size): by_piece(name, size, batch) for name in NETWORKS for size, batch in SIZES.items()}
pd.DataFrame(pieces).round(1)

# %% [markdown]
# With 64 pixels a graph for sixteen images is fastest, with 256 pixels it hardly matters. So OpenVINO gets as many images as have 65,536 pixels: sixteen, or one. A graph for any number of images, which was used before below 256 pixels, took 1.2 to 1.8 times as long as one for a fixed number; logits with the channels first cost the U-Net on EfficientNet-Lite0 a fifth at 256 pixels (measured on this processor, in another run). PyTorch gets four images of 256 pixels at a time: one at a time takes 1.3 to 1.5 times as long, eight 0.9 to 1.0.
