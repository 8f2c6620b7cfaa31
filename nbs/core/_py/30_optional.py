# %% [markdown]
# # Optional packages
#
# > Packages that are asked for only when they are needed, and what to do where one is missing or broken.
#
# - skip_showdoc: true

# %%
#| default_exp core.optional

# %%
#| export
import importlib
import os
import sys
from types import ModuleType

import torch

from ctseg.core.errors import InputError

# %%
#| hide
from fastcore.test import test_eq

from ctseg.core.errors import InputError

# %% [markdown]
# Some packages are heavy, and some are needed by few users. `ctseg` imports them only when they are needed. Where one is missing, the error says how to install it.
#
# ## A torchvision that does not fit
#
# timm is always there, but it imports torchvision. A torchvision built for CUDA beside a PyTorch for the CPU stops with "operator torchvision::nms does not exist", because its compiled half cannot be loaded. Nothing here needs that half, so it is enough to declare the signatures of the two operators. Where torchvision is sound, this does nothing.

# %%
#| export
TORCHVISION_OPERATORS = ("nms", "qnms")

def declare_torchvision_operators() -> torch.library.Library:
    "Declare the operators of torchvision's compiled half; they stay declared as long as the returned object lives."
    library = torch.library.Library("torchvision", "DEF")
    for name in TORCHVISION_OPERATORS:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library

def forget_package(name: str) -> None:
    "Remove a package and its modules, half-imported ones too, from those that are loaded."
    for module in list(sys.modules):
        if module.split(".")[0] == name: del sys.modules[module]


# %%
#| export
def import_timm() -> ModuleType:
    "timm, also beside a torchvision whose compiled operators cannot be loaded."
    try:
        import torchvision
    except RuntimeError as e:
        if "torchvision::nms" not in str(e): raise
        forget_package("torchvision")
        declared = declare_torchvision_operators()
        import torchvision
        setattr(torchvision, "_ctseg_declared", declared)  # lives as long as the module
    import timm
    return timm


# %% [markdown]
# It is imported when it is needed, and no earlier:

# %%
print(import_timm().__name__, "is loaded")
test_eq(import_timm().__name__, "timm")


# %% [markdown]
# ## Extras
#
# What only some users need stands in an *extra*, such as `ctseg[monai]`. Where its package is missing, one line says how to get it. The error is an `ImportError` too, so that Python's own habits with optional modules hold, such as `try: import …` and `pytest.importorskip`.

# %%
#| export
class NotAtHand(InputError):
    "A package, or the published weights of a network, that could be had but are not here."


class NotInstalled(NotAtHand, ImportError):
    "A package of an extra that is not installed, or that cannot be imported."


# %% [markdown]
# Two packages tell their makers over the network that they are used: ONNX Runtime when a session opens, OpenVINO when it is imported. `ctseg` asks for no
# network by itself, so both are told not to. Who wants them to report sets `ORT_DISABLE_TELEMETRY=0`, or imports `openvino_telemetry` before.

# %%
#| export
def stop_reports() -> None:
    "Keep ONNX Runtime and OpenVINO from reporting their use over the network."
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    sys.modules.setdefault("openvino_telemetry", None)  # not to be had: OpenVINO does without


# %%
stop_reports()
try: import openvino_telemetry
except ImportError as e: print(type(e).__name__)


# %% [markdown]
# All packages of extras are imported in one way.

# %%
#| export
def import_extra(
    module: str, # e.g. "monai.transforms"
    extra: str, # of this package, e.g. "monai"
    who: str, # what needs it
) -> ModuleType:
    "Import a module of the extra `ctseg[extra]`; if it is missing, a `NotInstalled` tells how to get it."
    stop_reports()
    try:
        return importlib.import_module(module)
    except ImportError as e:
        package = module.split(".")[0]
        raise NotInstalled(f"{who} needs the package {package} ({e}); "
                           f"install it with: pip install 'ctseg[{extra}]'") from None


# %%
test_eq(import_extra("json", "none", "this page").__name__, "json")
try: import_extra("no_such_package.transforms", "monai", "ctseg.integrations.monai")
except ImportError as e: print(e)


# %% [markdown]
# Two families of networks come from packages of their own, the extra `ctseg[zoo]`.

# %%
#| export
def import_zoo(
    module: str, # e.g. "segmentation_models_pytorch"
    model: str, # the network that needs it
) -> ModuleType:
    "Import a module of the extra `ctseg[zoo]`; if it is missing, a `NotInstalled` tells how to get it."
    import_timm()
    return import_extra(module, "zoo", f"model {model!r}")


# %%
try: import_zoo("no_such_package.unet", "nnunet")
except InputError as e: print(e)
