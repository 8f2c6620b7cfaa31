# %% [markdown]
# # Engines
#
# > The same network, answered by OpenVINO or ONNX Runtime instead of PyTorch, and checked against PyTorch.
#
# - skip_showdoc: true

# %%
#| default_exp inference.engine

# %%
#| export
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ctseg.core.device import DevicePlan
from ctseg.core.errors import InputError, did_you_mean
from ctseg.core.optional import import_extra
from ctseg.inference.graph import Shape, onnx_file
from ctseg.inference.loop import Member, in_precision

# %%
#| hide
import torch
from fastcore.test import test_close, test_eq

from ctseg.core.device import pick_device
from ctseg.core.errors import InputError
from ctseg.losses.registry import create_loss
from ctseg.models.zoo import create_model

# %% [markdown]
# PyTorch executes a network layer by layer. Other programs first read the whole graph, join layers, choose a memory layout for each, and then execute it. On a CPU this is [up to three times as fast](../benchmarks/engines.ipynb):
#
# | engine | needs | computes |
# |---|---|---|
# | `torch` | nothing | float32 or bfloat16 |
# | `openvino` | the extra `openvino` | float32 or bfloat16 |
# | `onnx` | the extra `onnx` | float32 |
# | `auto` | | OpenVINO on a CPU where it is installed, else PyTorch |
#
# A GPU always computes with PyTorch. Neither a compiled network nor its graph is kept for the next call: to make it takes about a second, less than the start of PyTorch. [How fast ONNX Runtime is](../benchmarks/onnx.ipynb) was measured for every network of the zoo.
#
# ## Compiling
#
# Both engines read [the network as ONNX](22_graph.ipynb), written for images of one size, and are then asked with arrays.

# %%
#| export
Answer = Callable[[np.ndarray], list[np.ndarray]]  # images f32 [B, 1, H, W] to the arrays of logits

PACKAGES = {"openvino": ("openvino", "onnx"), "onnx": ("onnxruntime", "onnx")}  # what an engine needs

def available(engine: str) -> bool:
    "Are the packages of an engine installed?"
    return all(importlib.util.find_spec(name) for name in PACKAGES[engine])

def import_engine(module: str, extra: str):
    "The package of an engine; an `InputError` that names the extra where it is missing."
    return import_extra(module, extra, f"the engine {extra!r}")


# %%
try: import_engine("no_such_engine", "openvino")
except InputError as e: print(e)


# %%
#| export
def onnx_session(model: Path | bytes) -> Answer:
    "An ONNX file (or its bytes), run by ONNX Runtime on the CPU with as many threads as torch has."
    runtime = import_engine("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised; it need not be printed as well
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    source = model if isinstance(model, bytes) else str(model)
    session = runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"image": np.ascontiguousarray(x)})

def compile_onnx(
    network: nn.Module,
    shape: Shape,
    precision: str = "fp32",
) -> Answer:
    "A network in evaluation, run by ONNX Runtime; it computes in float32 whatever the `precision`."
    return onnx_session(onnx_file(network, shape))


# %%
torch.manual_seed(0)
network = create_model("attunet", 1, 4, width=8).eval()
image = torch.rand(2, 1, 61, 47)
if available("onnx"):
    answer = compile_onnx(network, (2, 1, 61, 47))
    with torch.inference_mode(): expected = network(image)
    assert np.abs(answer(image.numpy())[0] - expected.numpy()).max() < 1e-4

# %% [markdown]
# OpenVINO reads the same file, and compiles it for this processor. It is [fastest](../benchmarks/engines.ipynb#how-many-images-at-a-time) with a graph for a fixed number of images, sixteen of 64 pixels or one of 256, and with logits whose channels come last in memory, as PyTorch has them. A batch of another length is asked piece by piece, and the last piece is filled up with black images.

# %%
#| export
AT_A_TIME = 2**16  # pixels that OpenVINO is given at once

def _ask_by_pieces(
    request,
    x: np.ndarray,
    piece: int,
) -> list[np.ndarray]:
    """The answers of an OpenVINO request for `piece` images, for any number of images f32 `[B, K, H, W]`.

    Those that are maps come as the request has them, `[B, H, W, C]`.
    """
    empty = np.zeros((-len(x) % piece, *x.shape[1:]), x.dtype)
    filled = np.concatenate([x, empty])
    tensors = request.output_tensors
    answers = []
    for tensor in tensors:
        shape = (len(filled), *tensor.shape[1:])
        answers.append(np.empty(shape, np.float32))
    for start in range(0, len(filled), piece):
        some = slice(start, start + piece)
        request.infer([filled[some]], share_inputs=True)
        for answer, tensor in zip(answers, tensors):
            answer[some] = tensor.data  # whose memory is used again for the next images
    return [answer[:len(x)] for answer in answers]


# %%
#| export
def _with_channels_last(openvino, model):
    "An OpenVINO model that gives maps as `[B, H, W, C]` instead of `[B, C, H, W]`, which saves a copy."
    steps = openvino.preprocess.PrePostProcessor(model)
    for i, output in enumerate(model.outputs):
        if len(output.partial_shape) != 4:
            continue
        steps.output(i).model().set_layout(openvino.Layout("NCHW"))
        steps.output(i).tensor().set_layout(openvino.Layout("NHWC"))
    return steps.build()

def compile_openvino(
    network: nn.Module,
    shape: Shape,
    precision: str = "fp32",
) -> Answer:
    "A network in evaluation, compiled by OpenVINO with as many threads as torch has; `precision` is fp32 or bf16."
    openvino = import_engine("openvino", "openvino")
    core = openvino.Core()
    images, channels, height, width = shape
    piece = min(images, max(1, AT_A_TIME//(height*width)))
    model = core.read_model(onnx_file(network, shape))
    model.reshape([piece, channels, height, width])
    wishes = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32"}.get(precision, precision),
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(_with_channels_last(openvino, model), "CPU", wishes)
    request = compiled.create_infer_request()

    def answer(x: np.ndarray) -> list[np.ndarray]:
        found = _ask_by_pieces(request, x, piece)
        return [np.moveaxis(a, -1, 1) if a.ndim == 4 else a for a in found]
    return answer


# %%
if available("openvino"):
    answer = compile_openvino(network, (2, 1, 61, 47))
    assert np.abs(answer(image.numpy())[0] - expected.numpy()).max() < 1e-4

# %% [markdown]
# ## Checked against PyTorch
#
# A graph that was recorded on one size may be wrong at another: a transformer may have frozen its positions. Such a mistake gives no error, only a poor segmentation. So the first batch of each size is also given to PyTorch. An engine that disagrees there is not asked again at that size, and a warning says so.
#
# In bfloat16 PyTorch itself differs from float32. How much depends on the network, and a fixed tolerance that suits one lets another's mistakes through. So the engine may differ from PyTorch's float32 a little more than PyTorch's bfloat16 does. [Right graphs of the zoo](../benchmarks/engines.ipynb#every-network-of-the-zoo) are at 0.8 to 1.1 times that.

# %%
#| export
COMPILERS = {"openvino": compile_openvino, "onnx": compile_onnx}
TOLERANCE = 1e-3  # mean difference of two probabilities in float32 that is no more than rounding
ROUNDING = 1.5  # how much of PyTorch's own rounding, in a shorter precision, is allowed beside it

_Arrays = list[np.ndarray] | list[torch.Tensor]

def mean_difference(found: _Arrays, expected: _Arrays) -> float:
    "The mean difference of the probabilities that two lists of logits, of any shapes, stand for; of the worst pair; inf if shapes differ."
    if [tuple(a.shape) for a in found] != [tuple(b.shape) for b in expected]:
        return float("inf")
    pairs = [map(torch.as_tensor, pair) for pair in zip(found, expected)]
    return max((a.sigmoid() - b.sigmoid()).abs().mean().item() for a, b in pairs)

def _warn(engine: str, size: tuple[int, int], why: str):
    "Say once why PyTorch answers instead."
    height, width = size
    warnings.warn(f"{engine} {why} for images of {height}x{width}; PyTorch answers instead")


# %%
#| export
@dataclass(eq=False)
class EngineNetwork:
    "A network, and graphs of it compiled by another engine, by the size of the images."
    network: nn.Module
    engine: str
    plan: DevicePlan
    # by size; None: PyTorch answers
    graphs: dict[tuple[int, int], Answer | None] = field(default_factory=dict)

    @property
    def presence(self) -> nn.Module | None:
        "The presence head of the network, if it has one."
        return getattr(self.network, "presence", None)

    def by_torch(self, x: torch.Tensor, exact: bool = False) -> list[torch.Tensor]:
        "The f32 answers of PyTorch, computed in f32 if `exact`: logits, and presence logits [B,C] if there is a head."
        plan = replace(self.plan, precision="fp32") if exact else self.plan
        with torch.inference_mode(), in_precision(plan):
            if self.presence is None:
                return [self.network(x).float()]
            return [t.float() for t in self.network(x, presence=True)]

    def graph(self, shape: Shape) -> Answer | None:
        "The compiled graph for images of a size; None where the engine cannot express the network."
        try:
            return COMPILERS[self.engine](self.network, shape, self.plan.precision)
        except InputError:
            raise
        except Exception as e:  # each engine has its own way to say that it does not know an operation
            _warn(self.engine, shape[-2:], f"cannot compile it ({type(e).__name__})")
            return None


# %%
#| export
class CompiledNetwork(EngineNetwork):
    "A network that another engine answers for; it is called as the network is."
    def checked(self, x: torch.Tensor) -> Answer | None:
        "The graph for images like `x`, if it answers as PyTorch does."
        size = tuple(x.shape[-2:])
        graph = self.graph(tuple(x.shape))
        if graph is None:
            return None
        try:
            found = graph(x.numpy())
        except Exception as e:  # each engine has its own
            _warn(self.engine, size, f"fails ({type(e).__name__})")
            return None
        exact = self.by_torch(x, exact=True)
        rounded = exact if self.plan.precision == "fp32" else self.by_torch(x)
        apart = mean_difference(found, exact)
        allowed = TOLERANCE + ROUNDING*mean_difference(rounded, exact)
        if apart <= allowed:
            return graph
        _warn(self.engine, size, f"differs from PyTorch by {apart:.2g}")
        return None

    def __call__(self, x: torch.Tensor, presence: bool = False):
        "Logits f32 `[B, out_chans, H, W]` for images f32 `[B, 1, H, W]`; with `presence` also those of the head."
        x = x.float().contiguous()
        size = tuple(x.shape[-2:])
        if size not in self.graphs:
            self.graphs[size] = self.checked(x)
        graph = self.graphs[size]
        if graph is None:
            found = self.by_torch(x)
        else:
            found = [torch.from_numpy(answer) for answer in graph(x.numpy())]
        return tuple(found) if presence else found[0]


# %% [markdown]
# A `Member` of an ensemble asks a compiled network as it asks any other.

# %%
loss = create_loss("marginal")
network = create_model("attunet", 1, 4, width=8).eval()
plan = pick_device("cpu", "fp32")
plain = Member(network, loss)
for engine in COMPILERS:
    if not available(engine): continue
    compiled = replace(plain, model=CompiledNetwork(network, engine, plan))
    for size in ((61, 47), (64, 64)):
        x = torch.rand(2, 1, *size)
        test_close(compiled.probabilities(x, plan), plain.probabilities(x, plan), eps=1e-4)


# %% [markdown]
# A graph that answers something else is found out:

# %%
class Frozen(CompiledNetwork):
    "An engine that has frozen a wrong answer."
    def graph(self, shape): return lambda x: [np.ones((len(x), 4, *shape[2:]), np.float32)]

with warnings.catch_warnings(record=True) as messages:
    warnings.simplefilter("always")
    frozen = replace(plain, model=Frozen(network, "openvino", plan))
    test_close(frozen.probabilities(image, plan), plain.probabilities(image, plan), eps=1e-6)
print(messages[0].message)

# %% [markdown]
# ## Which engine?
#
# `auto` is OpenVINO where it is installed, the device is a CPU, and the network can be compiled and answers the first batch as PyTorch does; otherwise PyTorch, and a warning says so unless OpenVINO is simply not there. No clock decides, so the same command gives the same files each time. `segment` takes `auto` by itself, and writes into `volumes.json` which engine answered; so do the Kaggle notebooks. `predict` and the Python functions take `torch` unless told otherwise: a submission's bytes then do not depend on what else is installed. Predictions of the two differ by rounding, and [a benchmark](../benchmarks/engines.ipynb) says how much faster OpenVINO is, and from how many images on it pays.

# %%
#| export
ENGINES = ("auto", "torch", "openvino", "onnx")

def with_engine(member: Member, engine: str, plan: DevicePlan) -> Member:
    "A member whose network is answered by `engine`; `InputError` for an unknown or missing one, or a GPU."
    if engine not in ENGINES: raise did_you_mean("engine", engine, ENGINES)
    on_cpu = plan.device.type == "cpu"
    if engine == "auto":
        engine = "openvino" if on_cpu and available("openvino") else "torch"
    if engine == "torch": return member
    if not on_cpu:
        raise InputError(f"engine {engine} computes on a CPU; add --device cpu, or leave out --engine")
    for name in PACKAGES[engine]: import_engine(name, engine)
    return replace(member, model=CompiledNetwork(member.model, engine, plan))


# %%
#| export
def engine_of(model: nn.Module | EngineNetwork) -> str:
    "What has answered for a member's model so far; at some sizes it can be PyTorch, and at others not."
    if not isinstance(model, EngineNetwork):
        return "torch"
    used = {"torch" if graph is None else model.engine for graph in model.graphs.values()}
    return " and ".join(sorted(used)) or model.engine


# %%
test_eq(with_engine(plain, "torch", plan), plain)
try: with_engine(plain, "tensorrt", plan)
except InputError as e: print(e)
if available("openvino"):
    either = with_engine(plain, "auto", plan)
    test_close(either.probabilities(image, plan), plain.probabilities(image, plan), eps=1e-4)
    test_eq(engine_of(either.model), "openvino")
