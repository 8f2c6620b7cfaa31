# %% [markdown]
# # Device and precision
#
# > Which device to train on, in which precision, and whether its kernels exist at all.
#
# - skip_showdoc: true

# %%
#| default_exp core.device

# %%
#| export
import contextlib
import os
import platform
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from ctseg.core.errors import InputError, did_you_mean
from ctseg.core.threads import POLICIES, allowed_cpus, busy_cpus

# %%
#| hide
import torch
from fastcore.test import test_eq

from ctseg.core.errors import InputError

# %% [markdown]
# A Kaggle T4, an old P100, an H100 in a cluster and a laptop without a GPU should all run the same notebook. What differs between them is decided here, from the **compute capability** of the card, and nowhere else:
#
# | capability | cards | precision | why |
# |---|---|---|---|
# | none (CPU) | with AMX or AVX512-BF16 | bfloat16 | the processor computes it itself, [mostly faster](../benchmarks/cpu_precision.ipynb) |
# | none (CPU) | others | float32 | bfloat16 would be emulated |
# | below 7.0 | P100 (6.0), GTX 10 | float16 + loss scaling | no tensor cores: it saves memory, hardly time; Triton refuses `torch.compile` |
# | 7.0 – 7.5 | V100, T4 | float16 + loss scaling | tensor cores for float16 only |
# | 8.0 and above | A100, L4, H100 | bfloat16 | same range as float32, no loss scaling |
#
# `torch.cuda.is_bf16_supported()` is of no use here: by default it counts *emulated* bfloat16 and says yes on a T4. For a processor torch knows the instructions that it has.

# %%
#| export
_BF16_QUESTIONS = {  # to torch.cpu
    "AVX512-BF16": "_is_avx512_bf16_supported",
    "AMX": "_is_amx_tile_supported",
}

def bf16_instructions() -> list[str]:
    "The instructions for bfloat16 that this processor has; none where this torch does not know the question."
    return [name for name, question in _BF16_QUESTIONS.items() if getattr(torch.cpu, question, bool)()]

def computes_bf16() -> bool:
    "Does this processor multiply bfloat16 itself, with AMX or AVX512-BF16?"
    return bool(bf16_instructions())


# %% [markdown]
# A time means something only beside the processor it was taken on:

# %%
#| export
def processor_name() -> str:
    "What the system calls this processor; at least its architecture."
    return platform.processor() or platform.machine()

def describe_processor(cpuinfo: str | Path = "/proc/cpuinfo") -> str:
    "The model of this processor and its instructions for bfloat16, as the benchmark pages print it."
    model = processor_name()
    with contextlib.suppress(OSError):  # only Linux has the file
        facts = (line.partition(":") for line in Path(cpuinfo).read_text().splitlines())
        model = next((value.strip() for key, _, value in facts if key.strip() == "model name"), model)
    return f"{model}, {' and '.join(bf16_instructions()) or 'no bfloat16'}"


# %% [markdown]
# Numbers that are to be compared across processors want the same arithmetic everywhere. `CTSEG_CPU_PRECISION=fp32` in the environment says so once for all commands; the tests and the pages of this site are run with it.

# %%
#| export
CPU_PRECISION = "CTSEG_CPU_PRECISION"  # environment: what `auto` means on a CPU

def pick_precision(
    capability: tuple[int, int] | None, # (major, minor) of the card, None for a CPU
) -> str: # "fp32", "fp16" or "bf16"
    "The precision that suits a card, by its compute capability (major, minor) alone, or this processor."
    if capability is not None:
        return "bf16" if capability >= (8, 0) else "fp16"
    wish = os.environ.get(CPU_PRECISION, "")
    if wish not in ("", "fp32", "bf16"):
        raise InputError(f"{CPU_PRECISION}={wish}: expected fp32 or bf16")
    return wish or ("bf16" if computes_bf16() else "fp32")


# %%
for card, cap in dict(P100=(6, 0), V100=(7, 0), T4=(7, 5), A100=(8, 0), L4=(8, 9), H100=(9, 0)).items():
    print(f"{card:>5} {pick_precision(cap)}")


# %% [markdown]
# ## Do the kernels exist?
#
# A PyTorch wheel contains machine code for a list of architectures. On a card outside that list `torch.cuda.is_available()` still says yes, and the first operation dies with *no kernel image is available*. Code for the same major version and a lower minor one runs (`sm_80` code on an 8.6 card). An entry `compute_XX` is PTX, which any later card can compile.

# %%
#| export
def has_kernels(
    capability: tuple[int, int], # (major, minor) of the card
    arch_list: Iterable[str], # `torch.cuda.get_arch_list()`
) -> bool:
    "Does a build with these architectures hold code for this card?"
    for arch in arch_list:
        kind, _, number = arch.partition("_")
        number = number.rstrip("af")  # sm_90a: features of exactly that chip
        if not number.isdigit(): continue
        built_for = divmod(int(number), 10)
        same_major = built_for[0] == capability[0]
        if kind == "sm" and same_major and built_for <= capability: return True
        if kind == "compute" and built_for <= capability: return True
    return False


# %% [markdown]
# Kaggle's torch has code for a T4 (7.5) and newer cards, and none for a P100 (6.0). PTX serves any later card.

# %%
kaggle = ["sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
test_eq([has_kernels(c, kaggle) for c in [(6, 0), (7, 5), (8, 9), (9, 0)]], [False, True, True, True])
test_eq(has_kernels((9, 0), ["sm_80", "compute_80"]), True)


# %% [markdown]
# The remedy is part of the message. Legacy `cu126` wheels keep Pascal up to PyTorch 2.14.

# %%
#| export
def sm(capability: tuple[int, int]) -> str:
    "The name of an architecture, e.g. sm_75."
    return f"sm_{capability[0]}{capability[1]}"

def require_kernels(name: str, capability: tuple[int, int], arch_list: list[str]) -> None:
    "`InputError` with the remedy when this build of torch has no code for the card called `name`."
    if has_kernels(capability, arch_list): return
    if capability < (7, 5):
        legacy = "pip install 'torch<2.15' --index-url https://download.pytorch.org/whl/cu126"
        remedy = f"choose a T4 or newer, or `{legacy}`"
    else:
        remedy = "install a newer torch"
    built_for = f"this torch {torch.__version__} was built for ({', '.join(arch_list)})"
    raise InputError(f"{name} ({sm(capability)}) is not among the cards {built_for}; "
                     f"{remedy}, or run with --device cpu")


# %%
try: require_kernels("Tesla P100-PCIE-16GB", (6, 0), kaggle)
except InputError as e: print(str(e).replace(torch.__version__, "2.x"))


# %% [markdown]
# ## The plan
#
# What the user asks for by name is honoured or refused, never silently replaced. `--device cuda` without a GPU is an error, not a slow night on the CPU. bfloat16 below 8.0 is refused too, since it would be emulated.

# %%
#| export
@dataclass(frozen=True)
class DevicePlan:
    "Where and how to compute: the device, the precision, and what is legal on it."
    device: torch.device
    precision: str  # "fp32", "fp16" or "bf16"
    name: str  # of the card or processor
    capability: tuple[int, int] | None = None  # None on a CPU

    def __str__(self) -> str: return f"{self.device} ({self.name}), {self.precision}"

    @property
    def can_compile(self) -> bool:
        "Triton, on which `torch.compile` stands, refuses cards below 7.0, and Apple's processors."
        if self.device.type == "mps": return False
        return self.capability is None or self.capability >= (7, 0)


# %%
t4 = DevicePlan(torch.device("cuda:0"), "fp16", "Tesla T4", (7, 5))
print(t4, t4.can_compile)  # as `ctseg fit` tells it
test_eq(str(t4), "cuda:0 (Tesla T4), fp16")


# %%
#| export
def plan_cpu(precision: str) -> DevicePlan:
    "The plan for the CPU; `InputError` for float16."
    if precision == "fp16":
        raise InputError("precision fp16 needs a GPU; on a CPU use fp32 or bf16")
    if precision == "auto": precision = pick_precision(None)
    return DevicePlan(torch.device("cpu"), precision, processor_name())


# %%
#| export
def plan_gpu(device: str, precision: str) -> DevicePlan:
    "The plan for \"cuda\" (of several processes each takes its own card) or \"cuda:N\"; `InputError` where the card cannot do it."
    local = int(os.environ.get("LOCAL_RANK", 0))  # torchrun's number for this process on this host
    card = torch.device(device if ":" in device else f"cuda:{local}")
    if card.index >= torch.cuda.device_count():
        raise InputError(f"device {card}: there are {torch.cuda.device_count()} GPUs, numbered from 0")
    name, capability = torch.cuda.get_device_name(card), torch.cuda.get_device_capability(card)
    require_kernels(name, capability, torch.cuda.get_arch_list())
    if precision == "bf16" and capability < (8, 0):
        raise InputError(f"precision bf16: {name} ({sm(capability)}) only emulates it; use fp16")
    if precision == "auto": precision = pick_precision(capability)
    return DevicePlan(card, precision, name, capability)


# %%
print(plan_cpu("auto").precision)
try: plan_cpu("fp16")
except InputError as e: print(e)


# %% [markdown]
# Apple's processors have a GPU of their own, which torch calls *mps*. It computes in float32 here. `auto` does not choose it, because nobody has yet held
# its results against those of a CPU with this package: whoever wants it says so.

# %%
#| export
def plan_mps(precision: str) -> DevicePlan:
    "The plan for an Apple processor's GPU, in float32; `InputError` without one, or for another precision."
    mps = torch.backends.mps
    if not mps.is_available():
        why = "this macOS is too old" if mps.is_built() else "it is for Macs with an Apple processor"
        raise InputError(f"device 'mps': torch {torch.__version__} cannot use it, {why}; use --device cpu")
    if precision not in ("auto", "fp32"):
        raise InputError(f"precision {precision} was never tried on mps; use fp32")
    return DevicePlan(torch.device("mps"), "fp32", processor_name())


# %%
try: plan_mps("auto")
except InputError as e: print(str(e).replace(torch.__version__, "2.x"))

# %%
#| export
PRECISIONS = ("auto", "fp32", "fp16", "bf16")

def pick_device(
    device: str = "auto", # "auto", "cpu", "cuda", "cuda:N" or "mps"
    precision: str = "auto", # "auto" (by capability), "fp32", "fp16" or "bf16"
) -> DevicePlan:
    "The device and precision to use; an `InputError` where the wish cannot be met."
    if precision not in PRECISIONS:
        raise did_you_mean("precision", precision, PRECISIONS)
    if device == "auto": device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu": return plan_cpu(precision)
    if device == "mps": return plan_mps(precision)
    if not re.fullmatch(r"cuda(:\d+)?", device):
        raise did_you_mean("device", device, ["auto", "cpu", "cuda", "mps"])
    if not torch.cuda.is_available():
        raise InputError(f"device {device!r}: torch {torch.__version__} sees no GPU; use --device cpu")
    return plan_gpu(device, precision)


# %%
plan = pick_device("cpu")
test_eq((plan.device.type, plan.precision), ("cpu", "fp32"))
for wish in [dict(device="gpu"), dict(precision="half")]:
    try: pick_device(**wish)
    except InputError as e: print(e)

# %% [markdown]
# ## The doctor
#
# `ctseg doctor` prints facts about the machine. They are the first thing to ask for in a bug report. *Training would use* is the plan that `ctseg fit` would make here, or the reason why it would refuse.

# %%
#| export
PACKAGES = (
    "ctseg", "torch", "timm", "accelerate", "numpy", "pandas", "scikit-image", "safetensors",
    "segmentation-models-pytorch", "dynamic-network-architectures",
    "nibabel", "pydicom", "highdicom", "tensorboard",
)

def package_versions(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    "The installed version of each package, or \"not installed\"."
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


# %% [markdown]
# Slow is often not the processor but how many others share it:

# %%
#| export
def thread_facts() -> dict:
    "The processors for this process, how busy others keep them, and how threads wait (see `ctseg.core.threads`)."
    policies = [f"{name}={os.environ[name]}" for name in POLICIES if name in os.environ]
    return {
        "cpus for ctseg": len(allowed_cpus()),
        "of them busy": round(busy_cpus(), 1),
        "torch threads": torch.get_num_threads(),
        "waiting threads": ", ".join(policies) or "OpenMP's default",
    }


# %%
test_eq(package_versions(["no-such-package"]), {"no-such-package": "not installed"})
list(thread_facts())


# %%
#| export
def gpu_facts(i: int) -> dict:
    "What GPU number `i` is, whether this torch has code for it, and its memory in GiB."
    capability, (free, total) = torch.cuda.get_device_capability(i), torch.cuda.mem_get_info(i)
    return {
        "name": torch.cuda.get_device_name(i),
        "capability": sm(capability),
        "kernels": has_kernels(capability, torch.cuda.get_arch_list()),
        "precision": pick_precision(capability),
        "torch.compile": capability >= (7, 0),
        "free GiB": round(free/2**30, 1),
        "total GiB": round(total/2**30, 1),
    }


# %%
#| export
def training_plan() -> str:
    "What a training would use on this machine, or why it would be refused."
    try:
        plan = pick_device()
    except InputError as e:
        return str(e)
    return f"{plan}; torch.compile {'possible' if plan.can_compile else 'refused by this card'}"


# %% [markdown]
# All facts together:

# %%
#| export
def doctor() -> dict:
    "Versions, devices, precision and memory: what a bug report needs."
    facts = {
        "python": sys.version.split()[0],
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
    }
    facts |= thread_facts()
    facts |= package_versions()
    facts["gpus"] = [gpu_facts(i) for i in range(torch.cuda.device_count())]
    facts["mps"] = "there, with --device mps" if torch.backends.mps.is_available() else "none"
    facts["training would use"] = training_plan()
    return facts


# %%
sorted(doctor())
