"""A pretended CUDA card for machines without one, to run what only a card would: `python card.py LIBRARY
CAPABILITY FUNCTION [ARGUMENT …]` prints what the function returns.

The library (card.cpp) makes tensors of `cuda:0` out of the host's memory and the CPU's kernels; here
`torch.cuda` is told to answer as a card of that capability would."""
import contextlib
import ctypes
import importlib.util
import json
import os
import sys
import warnings
from pathlib import Path


def pretend(library: str, capability: tuple[int, int]):
    """Load the library, import torch, and let `torch.cuda` speak of the card. It must come before anything
    else imports torch, which asks once for the cards there are."""
    lib = Path(importlib.util.find_spec("torch").origin).parent/"lib"
    for so in (lib/"libc10.so", lib/"libtorch_cpu.so", library): ctypes.CDLL(str(so), ctypes.RTLD_GLOBAL)
    import torch
    from types import SimpleNamespace
    facts = SimpleNamespace(
        name="pretended card",
        major=capability[0],
        minor=capability[1],
        total_memory=16 << 30,
        multi_processor_count=40,
    )
    answers = dict(
        is_available=True,
        is_initialized=True,
        device_count=1,
        current_device=0,
        get_device_name=facts.name,
        get_device_capability=capability,
        get_device_properties=facts,
        get_arch_list=["sm_60", "sm_70", "sm_75", "sm_80", "sm_90"],
        mem_get_info=(15 << 30, 16 << 30),
        is_bf16_supported=True,  # emulated bfloat16 counts, as in truth
        memory_allocated=0,
        max_memory_allocated=0,
        reset_peak_memory_stats=None,
        set_device=None,
        empty_cache=None,
        synchronize=None,
        manual_seed=None,
        manual_seed_all=None,
        _lazy_init=None,
    )
    for name, answer in answers.items(): setattr(torch.cuda, name, lambda *a, answer=answer, **k: answer)
    copy, reduce = torch.Tensor.__deepcopy__, torch.Tensor.__reduce_ex__
    def deepcopy(t, memo):  # a storage of a card is copied by code that is not in this build of torch
        if not t.is_cuda: return copy(t, memo)
        if id(t) not in memo:
            new = t.detach().clone(memory_format=torch.preserve_format)
            memo[id(t)] = (
                torch.nn.Parameter(new, t.requires_grad)
                if isinstance(t, torch.nn.Parameter)
                else new.requires_grad_(t.requires_grad)
            )
        return memo[id(t)]
    torch.Tensor.__deepcopy__ = torch.nn.Parameter.__deepcopy__ = deepcopy
    # the same for pickling
    torch.Tensor.__reduce_ex__ = lambda t, protocol: reduce(t.detach().cpu() if t.is_cuda else t, protocol)


def refusals() -> dict:
    """What the card says to mistakes, and what it makes of legal things. Were it to let mistakes pass, the
    other checks would show nothing."""
    import torch
    x, host, gen = (
        torch.arange(6.).view(2, 3).cuda(),
        torch.ones(2, 3),
        lambda device: torch.Generator(device).manual_seed(0),
    )
    mistakes = {
        "sum": lambda: x + host,
        "index by the card": lambda: host[x.sum(1) > 0],
        "numpy": lambda: x.numpy(),
        "cat": lambda: torch.cat([x, host]),
        "put": lambda: x.index_put_((torch.tensor([0]),), host[:1]),
        "generator of the host": lambda: torch.rand(3, device="cuda", generator=gen("cpu")),
        "generator of the card": lambda: torch.rand(3, generator=gen("cuda")),
        "where": lambda: torch.where(x > 1, x, host),
        "convolution": lambda: torch.nn.Conv2d(1, 1, 1)(x[None, None]),
        "scatter": lambda: x.scatter_(1, torch.zeros(2, 1, dtype=torch.int64), 1.),
    }
    said = {}
    for name, f in mistakes.items():
        try: f(); said[name] = "let pass"
        except (RuntimeError, TypeError) as e: said[name] = str(e)
    x[:, 1:].zero_()
    conv = torch.nn.Conv2d(1, 2, 3, padding=1).cuda()
    with torch.autocast("cuda", torch.float16): y = conv(x[None, None])
    y.float().sum().backward()
    return said | {
        "values": x.tolist(),
        "legal": [
            x[torch.tensor([1])].device.type,
            (x + 1 + torch.tensor(2.)).device.type,
            x.cpu().device.type,
        ],
        "drawn alike": torch.rand(3, device="cuda", generator=gen("cuda")).tolist()
        == torch.rand(3, generator=gen("cpu")).tolist(),
        "autocast": str(y.dtype),
        "gradient": [conv.weight.grad.device.type, str(conv.weight.grad.dtype)],
    }


def fits(data: str, out: str, jobs: str) -> dict:
    """Fit and predict on the card: `jobs` is JSON, a name to (recipe, settings). The epochs of each, and
    what was said."""
    import pandas as pd
    from helpers import toys  # noqa: F401 the smallest network
    from ctseg.data.challenge import read_challenge
    from ctseg.prediction.predictor import load_predictor, predict_masks
    from ctseg.recipes.fit import fit
    from ctseg.recipes.table import get_recipe
    from ctseg.runs.recipe import apply_settings
    slices, told = read_challenge(data), {}
    for name, (recipe, settings) in json.loads(jobs).items():
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            run = fit(
                slices,
                apply_settings(get_recipe(recipe), settings),
                Path(out)/name,
                device="cuda",
                progress=False,
            )
        predictor = load_predictor(run.folder, "cuda", views=2)
        assert {p.device.type for m in predictor.members for p in m.model.parameters()} == {"cuda"}
        told[name] = dict(
            where=sorted(set(pd.read_csv(run/"timings.csv")["where"])),
            precision=predictor.plan.precision,
            history=json.loads(run.read_history().to_json(orient="records")),
            labels=predict_masks(predictor, slices.images).ravel().tolist(),
            said=[str(w.message) for w in said if "ctseg" in w.filename],
        )
    return told


def waits(data: str, out: str, jobs: str) -> dict:
    """How often a step of each phase waits for the card: `jobs` as for `fits`; a phase to the number of
    times, and the lines of ctseg that do it."""
    import traceback
    from collections import Counter
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from helpers import toys  # noqa: F401 the smallest network
    from ctseg.recipes.fit import fit
    from ctseg.recipes.table import get_recipe
    from ctseg.training.loop import Trainer
    from ctseg.runs.recipe import apply_settings
    steps, times, lines, phase, real = Counter(), Counter(), {}, [None], Trainer.step

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, f, types, args=(), kwargs=None):
            result, name = f(*args, **kwargs or {}), f._schema.name.split("::")[1]
            tensors = [
                t
                for a in args
                for t in (a if isinstance(a, (list, tuple)) else [a])
                if isinstance(t, torch.Tensor)
            ]
            if phase[0] and any(t.is_cuda for t in tensors):
                # a mask has to be counted
                asked = (
                    name in ("_local_scalar_dense", "nonzero", "masked_select")
                    or name.startswith(("index", "_index"))
                    and any(t.dtype == torch.bool for t in tensors[1:])
                )
                back = name in ("_to_copy", "copy_") and not result.is_cuda
                if asked or back:
                    times[phase[0]] += 1
                    lines.setdefault(phase[0], set()).add(
                        next(
                            (
                                f"{Path(x.filename).name}: {x.line}"
                                for x in reversed(traceback.extract_stack())
                                if "ctseg" in Path(x.filename).parts
                            ),
                            "?",
                        )
                    )
            return result

    def step(self, index):
        phase[0] = self.phase.name
        steps[phase[0]] += 1
        try: return real(self, index)
        finally: phase[0] = None
    Trainer.step = step
    for name, (recipe, settings) in json.loads(jobs).items():
        with Watch():
            fit(
                data,
                apply_settings(get_recipe(recipe), settings),
                Path(out)/name,
                device="cuda",
                progress=False,
            )
    return {p: [times[p]/steps[p], sorted(lines.get(p, ()))] for p in steps}


def programme(data: str, out: str) -> dict:
    "What `tools/bench.py gpu` measures, with the smallest networks and sizes."
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]/"tools"))
    import gpu
    from helpers import toys  # noqa: F401 the smallest network
    gpu.NETWORKS = {name: ("tiny-for-tests", {"width": 4}) for name in gpu.NETWORKS}
    settings = ["model=tiny-for-tests", "width=4", "image_size=32", "folds=3", "epochs=1", "tune_rule=no"]
    return gpu.measure(Path(data), Path(out), 15, "cuda", settings, [0], gpu.Sizes(32, 2, 64))


def cut_on_card(data: str, out: str, settings: str, after: str) -> tuple:
    "See `helpers.runs.cut`."
    from helpers import toys  # noqa: F401 the smallest network
    from helpers.runs import cut
    return cut(data, Path(out), json.loads(settings), int(after), "cuda")


def networks(names: str) -> dict:
    """A step of each network in float16; the largest difference of its logits to those in float32 on the
    CPU, and which parameters got no finite gradient."""
    import torch
    from helpers.toys import make
    told = {}
    for name in names.split(","):
        model, x = make(name).eval(), torch.rand(2, 1, 64, 64)
        with torch.no_grad(): plain = model(x)
        model = model.cuda()
        with torch.autocast("cuda", torch.float16): out = model(x.cuda())
        out.float().square().mean().backward()
        told[name] = dict(
            device=out.device.type,
            off=(out.detach().float().cpu() - plain).abs().max().item()/plain.abs().max().item(),
            lost=[n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()],
        )
    return told


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # as pytest has it
    library, capability, function, *args = sys.argv[1:]
    pretend(library, tuple(map(int, capability.split("."))))
    with contextlib.redirect_stdout(sys.stderr): result = globals()[function](*args)
    print(json.dumps(result), flush=True)
    # the thread that PyTorch keeps for gradients of the card does not know that there is none, and would not end in peace
    os._exit(0)
