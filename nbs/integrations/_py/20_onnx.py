# %% [markdown]
# # ONNX
#
# > Trained runs as one ONNX file: a grey image in, probabilities and labels out, without PyTorch or this package.
#
# - skip_showdoc: true

# %%
#| default_exp integrations.onnx

# %%
#| export
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ctseg.core.atomic import atomic_path, check_file_place
from ctseg.core.device import pick_device
from ctseg.core.errors import InputError
from ctseg.inference.engine import import_engine, onnx_session
from ctseg.inference.graph import GraphNetwork, export_graph
from ctseg.inference.loop import Member, middle_channels
from ctseg.inference.rule import decide
from ctseg.prediction.predictor import Predictor, load_predictor

# %%
#| hide
import tempfile

from fastcore.test import test_close

from ctseg.core.anatomy import ClassMap
from ctseg.inference.engine import available
from ctseg.inference.expected_dice import ExpectedDice
from ctseg.inference.rule import Rule
from ctseg.losses.registry import create_loss
from ctseg.models.zoo import create_model


# %% [markdown]
# A hospital's viewer, a web page or a program in C# cannot run PyTorch. They can run ONNX: a file that holds the network as a graph of standard operations.
#
#     ctseg export onnx runs/first first.onnx
#
# The graph begins with the image and ends with labels, so that nothing has to be written again around it: padding, resizing, averaging of several runs and the [decision rule](../inference/40_rule.ipynb) are inside.
#
# | name | type | meaning |
# |---|---|---|
# | `image` | float32 `[B, 1, H, W]` | grey values divided by 255 |
# | `probabilities` | float32 `[B, C, H, W]` | of each class |
# | `labels` | uint8 `[B, H, W]` | 0 background, else the class's number |
#
# ## The graph
#
# A network may work at another size than the images have. ONNX cannot resize with antialiasing, so the graph multiplies by a matrix for each side: each new row is a mean of the old rows around it, with weights that fall off linearly.

# %%
#| export
def resize_matrix(old: torch.Tensor, new: int) -> torch.Tensor:
    "f32 `[new, old]`: the weights of the old pixels in each new one, for bilinear resizing with antialiasing."
    scale = old/new
    centres = (torch.arange(new) + 0.5)*scale
    places = torch.arange(old) + 0.5
    reach = torch.as_tensor(scale).clamp(min=1)
    weights = (1 - (places[None] - centres[:, None]).abs()/reach).clamp(min=0)
    return weights/weights.sum(1, keepdim=True)

def resized(x: torch.Tensor, size: int) -> torch.Tensor:
    "Images `[B, 1, H, W]` at `size` x `size`, as `torch.nn.functional.interpolate` with antialiasing makes them."
    height, width = (torch.as_tensor(side) for side in x.shape[-2:])
    return resize_matrix(height, size)@x@resize_matrix(width, size).T


# %%
x = torch.rand(2, 1, 61, 47)
for size in (32, 50, 128):
    expected = F.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False)
    test_close(resized(x, size), expected, eps=1e-5)
print(resize_matrix(torch.tensor(6), 3).numpy().round(2))


# %%
#| export
class MemberGraph(nn.Module):
    "A member of an ensemble as a graph: images f32 `[B, K, H, W]` to probabilities f32 `[B, C, H, W]`."
    def __init__(self, member: Member):
        super().__init__()
        self.network = GraphNetwork(member.model)
        self.loss, self.temperature, self.size = member.loss, member.temperature, member.image_size
        self.context = member.context

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        "Probabilities at the images' size."
        shown = middle_channels(x, self.context)
        if self.size: shown = resized(shown, self.size)
        logits, *presence = self.network(shown)
        prob = self.loss.probabilities(logits/self.temperature)
        if presence: prob = prob*presence[0].sigmoid()[..., None, None]
        if not self.size: return prob
        return F.interpolate(prob, x.shape[-2:], mode="bilinear", align_corners=False)


# %%
#| export
class PredictorGraph(nn.Module):
    "A predictor as a graph: images f32 `[B, K, H, W]` to probabilities f32 `[B, C, H, W]` and labels uint8 `[B, H, W]`."
    def __init__(self, predictor: Predictor):
        super().__init__()
        self.members = nn.ModuleList(map(MemberGraph, predictor.members))
        self.rule, self.activation = replace(predictor.rule, island=0), predictor.activation
        self.channels = 2*predictor.context + 1  # of the images

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        "Probabilities and labels."
        prob = sum(member(x) for member in self.members)/len(self.members)
        return prob, decide(prob, self.rule, self.activation)


# %%
torch.manual_seed(0)
classes = ClassMap.from_names(["lung", "heart", "liver"])
network = create_model("attunet", 1, 4, width=8).eval()
loss, plan = create_loss("marginal"), pick_device("cpu", "fp32")
rule = Rule(threshold=0.2, gate=0.2, expected=ExpectedDice(1, 1, 0.1, (0.1, 0.1, 0.9)))
predictor = Predictor([Member(network, loss), Member(network, loss, image_size=96)], classes, plan, rule=rule)
image = (torch.rand(2, 1, 61, 47)*255).round()
prob, labels = PredictorGraph(predictor)(image/255)
expected = predictor.probabilities(image[:, 0].byte().numpy())
test_close(prob.detach(), expected, eps=1e-5)
print(list(prob.shape), list(labels.shape), labels.unique().tolist())

# %% [markdown]
# ## The file
#
# To remove small islands one must follow connected pixels over the image, and ONNX has no operation for that. This one step of the rule is left out, and the command says so. The whole rule and the class names are in the file's metadata.

# %%
#| export
OUTPUTS = {"probabilities": "BCHW", "labels": "BHW"}
CLOSE = 1e-4  # largest difference of a probability to PyTorch's

def metadata(predictor: Predictor) -> dict[str, str]:
    "What the file says of itself: class names by number, the rule, what the input is."
    channels, order = 2*predictor.context + 1, ""
    if channels > 1:
        order = "; slices from the lowest to the highest, the one to label in the middle, zeros for none"
    return {
        "classes": json.dumps(dict(enumerate(predictor.classes.names, 1))),
        "rule": json.dumps(asdict(predictor.rule)),
        "image": f"float32 [B, {channels}, H, W]: grey values of 0 to 255, divided by 255{order}",
    }

def add_metadata(file: Path, entries: dict[str, str]):
    "Write entries into an ONNX file."
    onnx = import_engine("onnx", "onnx")
    model = onnx.load(str(file))
    onnx.helper.set_model_props(model, entries)
    onnx.checker.check_model(model)
    onnx.save(model, str(file))


# %%
#| export
def apart_on_noise(
    graph: PredictorGraph,
    answer, # of an ONNX session
    size: tuple[int, int],
    count: int = 3, # images
) -> tuple[float, float]:
    "How far a session is from PyTorch on noise: largest difference of a probability, share of other labels."
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(count, graph.channels, *size, generator=generator)
    with torch.inference_mode(): prob, labels = graph(x)
    try:
        found, found_labels = answer(x.numpy())
    except Exception:  # the runtime has its own errors
        return float("inf"), 1.
    if found.shape != tuple(prob.shape):
        return float("inf"), 1.
    return float(np.abs(found - prob.numpy()).max()), float((found_labels != labels.numpy()).mean())


# %%
print(metadata(predictor)["classes"])

# %% [markdown]
# [Every network of the zoo](../benchmarks/onnx.ipynb) takes images of any size. One of your own whose graph is only right at the size it was recorded on gets a file for that size alone. Which of the two holds is tried by running the file: at the size, and at a larger one. Labels follow from probabilities, so they may differ where two classes are all but equal.

# %%
#| export
OTHER_LABELS = 1e-3  # share of pixels whose label may differ, where two probabilities are all but equal

def fault_of(graph: PredictorGraph, file: Path, sizes: list[tuple[int, int]], free: str) -> str:
    "Write the graph, recorded at the first of some sizes, and try it at all; returns what is wrong, or \"\"."
    try:
        export_graph(graph, file, sizes[0], OUTPUTS, free, graph.channels)
        answer = onnx_session(file)
    except (InputError, OSError):  # a full disk is no fault of the network
        raise
    except Exception as e:  # an operation without a form in ONNX, or one that the runtime does not know
        return f"{type(e).__name__}: {str(e).splitlines()[0][:200]}"
    for size in sizes:
        apart, others = apart_on_noise(graph, answer, size)
        if apart > CLOSE:
            return f"ONNX Runtime differs from PyTorch by {apart:.2g}"
        if others > OTHER_LABELS:
            return f"ONNX Runtime gives {others:.1%} of the pixels another label"
    return ""


# %%
#| export
def write_checked(graph: PredictorGraph, file: Path, size: tuple[int, int]) -> str:
    "Write and try the graph; returns the axes that are free, BHW or B. `InputError` if it is right at no size."
    larger = (size[0] + 32, size[1] + 19)
    if not fault_of(graph, file, [size, larger], "BHW"): return "BHW"
    fault = fault_of(graph, file, [size], "B")
    if not fault: return "B"
    raise InputError(f"{file.name}: this network cannot be exported: {fault}")


# %% [markdown]
# A network that asks for something ONNX has no word for:

# %%
class Strange(torch.nn.Module):
    "A network with the exponential of a matrix."
    channels = 1

    def forward(self, x): return torch.linalg.matrix_exp(x[..., :4, :4]), x[:, 0].byte()

if available("onnx"):
    with tempfile.TemporaryDirectory() as folder:
        try: write_checked(Strange(), Path(folder)/"strange.onnx", (16, 16))
        except InputError as e: print(str(e)[:100])


# %%
#| export
def export_onnx(
    runs: str | Path | list[str | Path], # one run folder, or several to average
    out: str | Path, # the file to write
) -> dict: # facts
    "Write trained runs as one ONNX file, and compare what ONNX Runtime and PyTorch make of noise."
    out = Path(out)
    if out.suffix != ".onnx":
        raise InputError(f"{out}: expected a name that ends in .onnx")
    check_file_place(out)
    predictor = load_predictor(runs, pick_device("cpu", "fp32"))
    graph = PredictorGraph(predictor).eval()
    size = predictor.rule_size
    with atomic_path(out) as file:
        free = write_checked(graph, file, size)
        add_metadata(file, metadata(predictor))
        apart, _ = apart_on_noise(graph, onnx_session(file), size)
    height, width = size
    facts = {
        "file": str(out),
        "MB": round(out.stat().st_size/1e6, 1),
        "classes": len(predictor.classes),
        "image sizes": "any" if free == "BHW" else f"{height}x{width} only",
        "largest difference to PyTorch": float(f"{apart:.1g}"),
    }
    if graph.channels > 1: facts["slices seen at once"] = graph.channels
    if predictor.rule.island:
        facts["left out"] = f"removing islands of fewer than {predictor.rule.island} pixels"
    return facts


# %%
if available("onnx"):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder)/"two.onnx"
        print("free axes:", write_checked(PredictorGraph(predictor).eval(), file, (64, 64)))
        found = onnx_session(file)((image/255).numpy())
    test_close(found[0], expected.numpy(), eps=1e-4)
    assert (found[1] == predictor.predict(image[:, 0].byte().numpy())).mean() > 0.999
