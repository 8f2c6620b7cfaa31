# %% [markdown]
# # Network as a graph
#
# > A network written as ONNX, whose graph holds for every height and width.
#
# - skip_showdoc: true

# %%
#| default_exp inference.graph

# %%
#| export
import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn

from ctseg.core.optional import import_extra

# %%
#| hide
import importlib.util

from fastcore.test import test_close

from ctseg.models.zoo import create_model


# %% [markdown]
# Programs without PyTorch read networks as ONNX: a file that holds the graph of standard operations, and the weights. [Other engines](25_engine.ipynb) compile it for this processor. [`ctseg export onnx`](../integrations/20_onnx.ipynb) writes it for whoever wants to use a run elsewhere.
#
# ## Every height and width
#
# A graph is recorded by watching the network work on one image. Decisions that Python makes on the way are frozen, such as how many black rows to [add](../models/10_base.ipynb) on a small image. So they are taken out of the network: the graph itself rounds the sides up, and crops the answer.

# %%
#| export
def rounded_up(side: torch.Tensor, step: int) -> torch.Tensor:
    "A side in pixels, as a tensor, as the next multiple of `step`, and at least twice as long."
    return ((side + step - 1)//step*step).clamp(min=2*step)


# %%
#| export
class GraphNetwork(nn.Module):
    """A network whose graph holds for every height and width: images f32 `[B, 1, H, W]` to a tuple of logits.

    The tuple holds `[B, out_chans, H, W]` and, of a network with a presence head, its logits `[B, C]`.
    """
    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.has_presence = getattr(network, "presence", None) is not None
        stride = getattr(network, "stride", 1)
        self.strides = (stride, stride) if isinstance(stride, int) else tuple(stride)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        "Logits of images f32 `[B, 1, H, W]`."
        height, width = (torch.as_tensor(side) for side in x.shape[-2:])
        below = rounded_up(height, self.strides[0]) - height
        right = rounded_up(width, self.strides[1]) - width
        padded = F.pad(x, (0, right, 0, below))
        logits = self.network(padded, presence=True) if self.has_presence else (self.network(padded),)
        return (logits[0][..., :height, :width], *logits[1:])


# %%
torch.manual_seed(0)
network = create_model("attunet", 1, 4, width=8).eval()
image = torch.rand(2, 1, 61, 47)
with torch.inference_mode():
    test_close(GraphNetwork(network)(image)[0], network(image), eps=1e-6)
print([rounded_up(torch.tensor(side), 16).item() for side in (5, 47, 61, 64)])

# %% [markdown]
# ## Writing it
#
# A transformer trained at another size has its position embedding resampled, by cubic interpolation with antialiasing. PyTorch does not know how to say this in ONNX, but ONNX has it, so it is told. The constant -0.5 is that of PyTorch's kernel.

# %%
#| export
OPSET = 18  # of ONNX's operators: the first whose Resize has antialiasing

def resize_bicubic(g, image, size, align_corners, scales):
    "PyTorch's cubic interpolation with antialiasing, `[B, C, H, W]` to `size`, as an operator of ONNX."
    if size.type().kind() == "NoneType":
        raise ValueError("cubic interpolation by a factor; only a size can be written as ONNX")

    def constant(number: int):
        return g.op("Constant", value_t=torch.tensor([number]))

    def whole_numbers(value):
        return g.op("Cast", value, to_i=torch.onnx.TensorProtoDataType.INT64)

    if size.node().kind() == "prim::ListConstruct":
        sides = [g.op("Unsqueeze", whole_numbers(side), constant(0)) for side in size.node().inputs()]
        size = g.op("Concat", *sides, axis_i=0)
    images_and_channels = g.op("Slice", g.op("Shape", image), constant(0), constant(2))
    whole = g.op("Concat", images_and_channels, whole_numbers(size), axis_i=0)
    none = g.op("Constant", value_t=torch.tensor([], dtype=torch.float32))
    return g.op(
        "Resize",
        image,
        none,
        none,
        whole,
        mode_s="cubic",
        cubic_coeff_a_f=-0.5,
        antialias_i=1,
        exclude_outside_i=1,
        coordinate_transformation_mode_s="half_pixel",
    )


# %%
#| export
def _ignore_log(*_):
    "What the exporter prints of a graph that it cannot write, thousands of lines."

@contextmanager
def quietly():
    "Without the warnings of a tracer, which speak of decisions that are no part of our graphs, and its dumps."
    with warnings.catch_warnings(), mock.patch.object(torch._C, "_jit_onnx_log", _ignore_log, create=True):
        warnings.simplefilter("ignore")
        yield


# %%
with quietly(): warnings.warn("nobody hears this")


# %%
#| export
def export_graph(
    graph: nn.Module, # in evaluation; from images f32 [B, 1, H, W] to a tuple of tensors
    path: Path,
    size: tuple[int, int], # height and width of the example it is recorded on
    outputs: dict[str, str], # the names of the tensors and of their axes, such as {"logits": "BCHW"}
    free: str = "BHW", # the axes whose length the file leaves open
    channels: int = 1, # of the images
):
    "Write a graph as an ONNX file."
    import_extra("onnx", "onnx", "the engine 'onnx'")
    torch.onnx.register_custom_op_symbolic("aten::_upsample_bicubic2d_aa", resize_bicubic, OPSET)
    axes = {}
    for name, letters in {"image": "BCHW", **outputs}.items():
        axes[name] = {i: letter for i, letter in enumerate(letters) if letter in free}
    example = torch.rand(2, channels, *size)
    # whoever asks may compute in bfloat16; the file is in float32
    with torch.inference_mode(), torch.autocast("cpu", enabled=False), quietly():
        torch.onnx.export(
            graph,
            (example,),
            str(path),
            input_names=["image"],
            output_names=list(outputs),
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )


# %%
class Halved(nn.Module):
    "Images at half their size."
    def forward(self, x):
        half = [side//2 for side in x.shape[-2:]]
        return (F.interpolate(x, half, mode="bicubic", antialias=True),)

HAS_ONNX = importlib.util.find_spec("onnx") is not None
if HAS_ONNX:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder)/"half.onnx"
        export_graph(Halved(), file, (16, 16), {"half": "BCHW"})
        print(f"{file.stat().st_size} bytes")

# %%
#| export
Shape = tuple[int, int, int, int]  # of a batch of images: B, channels, H, W

def onnx_file(network: nn.Module, shape: Shape) -> bytes:
    "A network in evaluation as ONNX, for any number of images of one height and width."
    _, channels, *size = shape
    graph = GraphNetwork(network).eval()
    outputs = {"logits": "BCHW"} | ({"presence": "BC"} if graph.has_presence else {})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder)/"network.onnx"
        export_graph(graph, file, tuple(size), outputs, "B", channels)
        return file.read_bytes()


# %%
if HAS_ONNX:
    print(f"{len(onnx_file(network, (2, 1, 61, 47)))/1e3:.0f} kB")
