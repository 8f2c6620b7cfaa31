# %% [markdown]
# # Networks as ONNX files
#
# > Every network of the zoo: at which sizes its file is right, how far it is from PyTorch, and how fast it is.
#
# - skip_showdoc: true

# %% [markdown]
# **Question.** What does a run lose as an ONNX file, and is predicting through it faster?
#
# **Answer.** Nothing: every network takes any number of images of any size, and no probability differs by more than 1e-4. As `ctseg predict` asks them, with one thread, ONNX Runtime is 1.5 to 1.7 times as fast as PyTorch in float32 with images of 64 pixels, and 1.0 to 1.1 times with 256. Where the processor computes bfloat16, PyTorch is as fast or faster: 0.9 to 1.5 times with 64 pixels, and 1.7 to 2 times with 256. So `ctseg predict --engine onnx` pays with small images and without bfloat16 ([below](#which-engine-for-ctseg-predict)).
#
# ## How it was measured
#
# Each network has its usual width, random weights and three classes, since neither the operations nor their speed depend on what was learnt. `ctseg export onnx` writes the file and tries it: at the size it was recorded on, and at one with other sides ([how](../integrations/20_onnx.ipynb)). Then both answer the same batch of two images of 96×96: PyTorch in its usual memory layout (in channels-last, which `ctseg predict` takes, it is faster), and ONNX Runtime the exported file, decision rule included. One thread each; the least CPU time of three rounds, taking turns.

# %%
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import torch

from ctseg.core.allocator import memory_kept
from ctseg.core.anatomy import ClassMap
from ctseg.core.device import computes_bf16, pick_device
from ctseg.inference.engine import onnx_session
from ctseg.inference.loop import Member
from ctseg.integrations.onnx import PredictorGraph, apart_on_noise, write_checked
from ctseg.losses.registry import create_loss
from ctseg.models.base import place
from ctseg.models.zoo import create_model, list_models
from ctseg.prediction.predictor import Predictor

torch.set_num_threads(1)
SIZE = (96, 96)
PLAN, LOSS = pick_device("cpu", "fp32"), create_loss("marginal")
CLASSES = ClassMap.from_names(["lung", "heart", "liver"])
IMAGES = np.random.default_rng(0).integers(0, 256, (2, *SIZE), np.uint8)


# %%
def network(name):
    "A network of the zoo with random weights."
    torch.manual_seed(0)
    settings = {"pretrained": False} if ":" in name else {}
    if name in ("uctransnet", "nnunet", "nnunet-resenc"): settings["image_size"] = SIZE[0]
    return create_model(name, 1, len(CLASSES) + 1, **settings).eval()

def least_seconds(asks, rounds=3):
    "The least CPU time of each of some functions, taking turns."
    best = dict.fromkeys(asks, float("inf"))
    for _ in range(rounds):
        for name, ask in asks.items():
            start = time.process_time()
            ask()
            best[name] = min(best[name], time.process_time() - start)
    return best

def row(name):
    "What the page says of a network."
    predictor = Predictor([Member(network(name), LOSS)], CLASSES, PLAN)
    graph = PredictorGraph(predictor).eval()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder)/"network.onnx"
        free = write_checked(graph, file, SIZE)
        answer, megabytes = onnx_session(file), file.stat().st_size/1e6
    floats = IMAGES[:, None].astype(np.float32)/255
    seconds = least_seconds({
        "PyTorch": lambda: predictor.probabilities(IMAGES),
        "ONNX": lambda: answer(floats),
    })
    apart = max(apart_on_noise(graph, answer, size)[0] for size in (SIZE, (133, 70)))
    return {
        "network": name,
        "sizes": "any" if free == "BHW" else "one",
        "largest difference": apart,
        "MB": megabytes,
        "PyTorch, images/s": len(IMAGES)/seconds["PyTorch"],
        "ONNX Runtime, images/s": len(IMAGES)/seconds["ONNX"],
        "times faster": seconds["PyTorch"]/seconds["ONNX"],
    }


# %%
cpu = next(
    (line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),
    platform.processor(),
)
print(f"{cpu}, one thread; PyTorch {torch.__version__}, ONNX Runtime {onnxruntime.__version__}")
table = pd.DataFrame([row(name) for name in list_models()]).set_index("network")
digits = {"MB": 0, "PyTorch, images/s": 1, "ONNX Runtime, images/s": 1, "times faster": 2}
shown = table.round(digits)
shown["largest difference"] = [f"{apart:.0e}" for apart in table["largest difference"]]
shown

# %%
assert (table["sizes"] == "any").all() and (table["largest difference"] < 1e-4).all()


# %% [markdown]
# ## Which engine for `ctseg predict`?
#
# `--engine torch`, the default, takes bfloat16 on processors that [multiply it themselves](cpu_precision.ipynb), float32 on others. `--engine onnx` always takes float32. Two networks, at a small and a large image size, as `ctseg predict` asks them: eight images at a time, probabilities included, in processor time of one thread; the three take turns, and the fastest of three rounds counts.

# %%
def engines(name, size, images=8, **settings):
    "Predictors of the same network by engine, and images for them."
    torch.manual_seed(0)
    model = place(create_model(name, 1, len(CLASSES) + 1, **settings), "cpu").eval()

    def asked(precision, engine="torch"):
        "A predictor."
        plan = pick_device("cpu", precision)
        return Predictor([Member(model, LOSS)], CLASSES, plan).by_engine(engine)

    pictures = np.random.default_rng(0).integers(0, 256, (images, size, size), np.uint8)
    return {
        "PyTorch, float32": asked("fp32"),
        "PyTorch, bfloat16": asked("bf16"),
        "ONNX Runtime": asked("fp32", "onnx"),
    }, pictures

def engine_row(name, size, **settings):
    "Images a second of each engine, and how much faster ONNX Runtime is."
    predictors, pictures = engines(name, size, **settings)
    asks = {engine: lambda p=p: p.probabilities(pictures) for engine, p in predictors.items()}
    for ask in asks.values(): ask()  # compiled, and memory taken
    with memory_kept():  # as prediction has it
        seconds = least_seconds(asks)
    line = {"network": name, "pixels": size}
    line |= {f"{engine}, images/s": len(pictures)/s for engine, s in seconds.items()}
    for other in ("float32", "bfloat16"):
        line[f"ONNX to {other}"] = seconds[f"PyTorch, {other}"]/seconds["ONNX Runtime"]
    return line


# %%
print("this processor multiplies bfloat16:", computes_bf16())
CASES = [("attunet", {"width": 16}), ("unet:tf_efficientnet_lite0", {"pretrained": False})]
lines = [engine_row(name, size, **settings) for name, settings in CASES for size in (64, 256)]
pd.DataFrame(lines).set_index(["network", "pixels"]).round(2)

# %% [markdown]
# **Which to take.** On a CPU without bfloat16 `onnx` saves up to two fifths of the time with small images. With bfloat16 `torch`, the default, is as fast or faster. [OpenVINO](engines.ipynb) is ahead of both. An earlier version of this page had PyTorch in its usual memory layout and all images at once, and found ONNX Runtime ahead everywhere.
#
# ## What it does not say
#
# The machine was busy. Processor time is counted, but neighbours share its caches: ratios move by a tenth. OpenVINO was not measured here; [another page](engines.ipynb) has it. This page was run on an Intel Xeon with AMX; on an AMD EPYC with bfloat16 but without AMX ONNX Runtime was 1.1 to 1.5 times as fast as PyTorch in float32, and 0.64 to 1.01 times as fast as in bfloat16. Several threads and other processors may shift the balance.
