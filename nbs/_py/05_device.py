# %% [markdown]
# # Device and precision
#
# > Which device to train on, in which precision, and whether its kernels exist at all.
#
# - skip_showdoc: true

# %%
#| default_exp device

# %% [markdown]
# A Kaggle T4, an old P100, an H100 in a cluster and a laptop without a GPU should all run the same notebook. What differs between them is
# decided here, once, from the **compute capability** of the card, and nowhere else:
#
# | capability | cards | precision | why |
# |---|---|---|---|
# | none (CPU) | | float32 | exact, and resuming is bit for bit |
# | below 7.0 | P100 (6.0), GTX 10 | float16 + loss scaling | no tensor cores: it saves memory, hardly time; `torch.compile` is refused by Triton |
# | 7.0 – 7.5 | V100, T4 | float16 + loss scaling | tensor cores for float16 only |
# | 8.0 and above | A100, L4, H100 | bfloat16 | same range as float32, no loss scaling |
#
# We do not ask `torch.cuda.is_bf16_supported()`: by default it counts *emulated* bfloat16 and says yes on a T4.

# %%
#| export
import os, platform, re, sys
from dataclasses import dataclass
from importlib import metadata

import torch
from ctseg.files import InputError, did_you_mean
from ctseg.threads import POLICIES, allowed_cpus, busy_cpus

# %%
#| hide
from fastcore.test import test_eq, test_fail


# %%
#| export
def pick_precision(
    capability: tuple[int, int]|None, # (major, minor) of the card, None for a CPU
) -> str: # "fp32", "fp16" or "bf16"
    "The precision that suits a card, by compute capability alone."
    if capability is None: return "fp32"
    return "bf16" if capability >= (8, 0) else "fp16"


# %%
for card, cap in dict(CPU=None, P100=(6, 0), V100=(7, 0), T4=(7, 5), A100=(8, 0), L4=(8, 9), H100=(9, 0)).items():
    print(f"{card:>5} {pick_precision(cap)}")


# %% [markdown]
# ## Do the kernels exist?
#
# A PyTorch wheel contains machine code for a list of architectures. On a card outside that list `torch.cuda.is_available()` still says yes,
# and the first operation dies with *no kernel image is available*. It happened to everybody who drew a P100 on Kaggle in 2026. Code for the same
# major version and a lower minor one runs (`sm_80` code on an 8.6 card), and `compute_XX` entries are PTX, which any later card can compile.

# %%
#| export
def has_kernels(
    capability: tuple[int, int], # (major, minor) of the card
    arch_list: list[str], # `torch.cuda.get_arch_list()`
) -> bool:
    "Does a build with these architectures hold code for this card?"
    major, minor = capability
    for arch in arch_list:
        kind, _, number = arch.partition("_")
        number = number.rstrip("af")  # sm_90a: features of exactly that chip
        if not number.isdigit(): continue
        a, b = divmod(int(number), 10)
        if kind == "sm" and a == major and b <= minor: return True
        if kind == "compute" and (a, b) <= (major, minor): return True
    return False


# %%
kaggle = ["sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
test_eq([has_kernels(c, kaggle) for c in [(6, 0), (7, 5), (8, 9), (9, 0)]], [False, True, True, True])
test_eq(has_kernels((9, 0), ["sm_80", "compute_80"]), True)


# %% [markdown]
# The remedy is part of the message. Legacy `cu126` wheels keep Pascal up to PyTorch 2.14.

# %%
#| export
def require_kernels(name: str, capability: tuple[int, int], arch_list: list[str]):
    "Stop with the remedy when this build of torch has no code for the card."
    if has_kernels(capability, arch_list): return
    old = capability < (7, 5)
    fix = ("choose a T4 or newer, or `pip install 'torch<2.15' --index-url https://download.pytorch.org/whl/cu126`"
           if old else "install a newer torch")
    raise InputError(f"{name} (sm_{capability[0]}{capability[1]}) is not among the cards this torch {torch.__version__} was built for "
                     f"({', '.join(arch_list)}); {fix}, or run with --device cpu")


# %%
try: require_kernels("Tesla P100-PCIE-16GB", (6, 0), kaggle)
except InputError as e: print(str(e).replace(torch.__version__, "2.x"))


# %% [markdown]
# ## The plan
#
# `pick_device` puts it together. What the user asks for by name is honoured or refused, never silently replaced: `--device cuda` without a
# GPU is an error, not a slow night on the CPU. bfloat16 below 8.0 is refused too, since it would be emulated.

# %%
#| export
@dataclass(frozen=True)
class DevicePlan:
    "Where and how to compute: the device, the precision, and what is legal on it."
    device: torch.device
    precision: str                             # "fp32", "fp16" or "bf16"
    name: str                                  # of the card or processor
    capability: tuple[int, int]|None = None    # None on a CPU

    def __str__(self): return f"{self.device} ({self.name}), {self.precision}"

    @property
    def can_compile(self) -> bool:
        "Triton, on which `torch.compile` stands, refuses cards below 7.0."
        return self.capability is None or self.capability >= (7, 0)


# %%
#| export
PRECISIONS = ("auto", "fp32", "fp16", "bf16")

def pick_device(
    device: str = "auto", # "auto", "cpu", "cuda" or "cuda:N"
    precision: str = "auto", # "auto" (by capability), "fp32", "fp16" or "bf16"
) -> DevicePlan:
    "The device and precision to use; an `InputError` where the wish cannot be met."
    if precision not in PRECISIONS: raise did_you_mean("precision", precision, PRECISIONS)
    if device == "auto": device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        if precision == "fp16": raise InputError("precision fp16 needs a GPU; on a CPU use fp32 or bf16")
        return DevicePlan(torch.device("cpu"), "fp32" if precision == "auto" else precision, platform.processor() or platform.machine())
    if not re.fullmatch(r"cuda(:\d+)?", device): raise did_you_mean("device", device, ["auto", "cpu", "cuda"])
    if not torch.cuda.is_available(): raise InputError(f"device {device!r}: torch {torch.__version__} sees no GPU; use --device cpu")
    return _pick_gpu(device, precision)


# %%
#| export
def _pick_gpu(device: str, precision: str) -> DevicePlan:
    local = int(os.environ.get("LOCAL_RANK", 0))  # torchrun's number for this process on this host
    dev = torch.device(device if ":" in device else f"cuda:{local}")
    if dev.index >= torch.cuda.device_count():
        raise InputError(f"device {dev}: there are {torch.cuda.device_count()} GPUs, numbered from 0")
    name, cap = torch.cuda.get_device_name(dev), torch.cuda.get_device_capability(dev)
    require_kernels(name, cap, torch.cuda.get_arch_list())
    if precision == "bf16" and cap < (8, 0): raise InputError(f"precision bf16: {name} (sm_{cap[0]}{cap[1]}) only emulates it; use fp16")
    return DevicePlan(dev, pick_precision(cap) if precision == "auto" else precision, name, cap)


# %%
plan = pick_device("cpu")
test_eq((plan.device.type, plan.precision), ("cpu", "fp32"))
test_eq(str(DevicePlan(torch.device("cuda:0"), "fp16", "Tesla T4", (7, 5))), "cuda:0 (Tesla T4), fp16")  # as `ctseg fit` tells it
for wish in [dict(device="cpu", precision="fp16"), dict(device="gpu"), dict(precision="half")]:
    try: pick_device(**wish)
    except InputError as e: print(e)


# %% [markdown]
# ## The doctor
#
# `ctseg doctor` prints these facts; they are the first thing to ask for in a bug report. *Training would use* is the plan that `ctseg fit` would make here, or the reason why it would refuse.

# %%
#| export
def thread_facts() -> dict:
    "The processors for this process, how busy others keep them, and what was [decided](threads.html) on that."
    waiting = [f"{k}={os.environ[k]}" for k in POLICIES if k in os.environ]
    return {"cpus for ctseg": len(allowed_cpus()), "of them busy": round(busy_cpus(), 1),
            "torch threads": torch.get_num_threads(), "waiting threads": ", ".join(waiting) or "OpenMP's default"}

def doctor() -> dict:
    "Versions, devices, precision and memory: what a bug report needs."
    def version(p):
        try: return metadata.version(p)
        except metadata.PackageNotFoundError: return "not installed"
    packages = ["ctseg", "torch", "timm", "accelerate", "numpy", "pandas", "scikit-image", "safetensors"]
    extras = ["segmentation-models-pytorch", "dynamic-network-architectures", "nibabel", "pydicom", "highdicom", "tensorboard"]
    facts = {"python": sys.version.split()[0], "system": f"{platform.system()} {platform.machine()}", "cpus": os.cpu_count(),
             **thread_facts(), **{p: version(p) for p in packages + extras}, "gpus": []}
    for i in range(torch.cuda.device_count()):
        cap, free = torch.cuda.get_device_capability(i), torch.cuda.mem_get_info(i)
        ok = has_kernels(cap, torch.cuda.get_arch_list())
        facts["gpus"].append({"name": torch.cuda.get_device_name(i), "capability": f"sm_{cap[0]}{cap[1]}", "kernels": ok,
                              "precision": pick_precision(cap), "torch.compile": cap >= (7, 0),
                              "free GiB": round(free[0]/2**30, 1), "total GiB": round(free[1]/2**30, 1)})
    try:
        plan = pick_device()
        facts["training would use"] = f"{plan}; torch.compile {'possible' if plan.can_compile else 'refused by this card'}"
    except InputError as e: facts["training would use"] = str(e)
    return facts


# %%
facts = doctor()
sorted(facts)

# %%
#| hide
import nbdev; nbdev.nbdev_export()
