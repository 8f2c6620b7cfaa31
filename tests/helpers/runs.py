"Runs in processes of their own: several together, killed, stopped, cut."
import json
import os
import signal
import socket
import sys

import numpy as np
import torch
from torch import nn

from ctseg.core.device import pick_device
from ctseg.core.errors import InputError
from ctseg.data.batches import SliceData
from ctseg.inference.loop import batches, over_slices
from ctseg.recipes import fit as fitting
from ctseg.recipes.fit import fit
from ctseg.recipes.table import get_recipe
from ctseg.runs.folder import Run
from ctseg.runs.job import Networks
from ctseg.runs.notes import EpochNotes
from ctseg.runs.recipe import apply_settings
from ctseg.training.loop import Trainer
from ctseg.training.setup import make_accelerator

from .processes import start


def command(*args):
    "What a user types after `ctseg`; raises `SystemExit` unless it ends well."
    from ctseg import cli
    sys.argv = ["ctseg", *map(str, args)]
    try: cli.main()
    except SystemExit as e:
        if e.code: raise


def together(n, f, *args):
    "`f(*args)` in `n` processes that know of each other, as torchrun would start them."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    env = (
        dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, WORLD_SIZE=str(n), LOCAL_WORLD_SIZE=str(n))
        if n > 1
        else {}
    )
    ps = [
        start(f, *args, env=env | (dict(RANK=str(r), LOCAL_RANK=str(r)) if n > 1 else {})) for r in range(n)
    ]
    for p in ps: p.join()
    assert [p.exitcode for p in ps] == [0]*n


def apart(slices, recipe, folder):
    "Go on with a run of which every process has another folder; what is said."
    mine = folder/os.environ["RANK"]
    mine.mkdir(exist_ok=True)
    try: fit(slices, recipe, mine/"run", device="cpu", progress=False, resume=True)
    except InputError as e: (mine/"said").write_text(str(e))


def share_the_work(out):
    "Sum seven slices, some of them here; whether all sums came back, and whether this process had its part."
    make_accelerator(pick_device("cpu"))  # connects the processes
    images = np.arange(7*6).reshape(7, 2, 3)
    found = over_slices(images, lambda part: {"total": torch.from_numpy(part).sum((1, 2))}, 2, shared=True)[
        "total"
    ]
    mine = sum(map(len, batches(7, 2, shared=True)))
    (out/os.environ.get("RANK", "0")).write_text(
        repr(found.tolist() == images.sum((1, 2)).tolist() and mine == 4)
    )


def losses_of(slices, recipes, out):
    """Fit each recipe, the one called store on the store beside `out`; process 0 writes the loss of every
    step by recipe and phase. In double precision:
    where a gradient is zero but for rounding (a bias before batch
    normalisation), Adam makes a whole step of the rounding, and in float32 any other order of a sum is
    visible after some steps, with one process as with several."""
    real, seen, batch = Trainer.step, {}, SliceData.batch
    make = Networks.make
    Networks.make = lambda self: make(self).double()
    # each process draws its own inside the network; everything else must agree
    nn.Dropout.forward = lambda self, x: x
    def wide(self, index):
        b = batch(self, index)
        b.image = b.image.double()
        return b
    SliceData.batch = wide

    def spy(self, index):
        loss = real(self, index)
        seen.setdefault(name, {}).setdefault(self.phase.name, []).append(loss)
        return loss
    Trainer.step = spy
    fitting.save_curves = lambda run: None  # nobody looks at the pictures
    for name, recipe in recipes.items():
        data, memory = (out.parent/"toy.zarr", "1KB") if name == "store" else (slices, "")
        fit(data, recipe, out/name, device="cpu", progress=False, memory=memory)
    if os.environ.get("RANK", "0") == "0": (out/"losses.json").write_text(json.dumps(seen))


def fit_quietly(slices, recipe, out): fit(slices, recipe, out, device="cpu", progress=False, resume=True)


def kill_and_resume(slices, recipe, out, whole_seconds, kills, rng):
    """Start, kill after a random while, start again …, and let it end at last. Returns where each kill
    struck: (checkpoints finished, epochs in history)."""
    struck = []
    for _ in range(kills):
        p = start(fit_quietly, slices, recipe, out)
        p.join(rng.uniform(0, 1)*whole_seconds)
        if p.exitcode is None: os.kill(p.pid, signal.SIGKILL)
        p.join()
        if p.exitcode == 0: break  # it was over before the kill
        assert p.exitcode == -signal.SIGKILL, f"the resumed run failed by itself (exit code {p.exitcode})"
        history = out/"history.csv"
        struck.append(
            (
                len(list(out.glob("checkpoints/*/final"))),
                len(history.read_text().splitlines()) - 1 if history.exists() else 0,
            )
        )
    p = start(fit_quietly, slices, recipe, out)
    p.join()
    assert p.exitcode == 0
    return struck


def cut(data, out, settings, after, device):
    """Fit `marginal-log`, or go on with it, cut as by a kill when it has `after` epochs (0: never); the
    epochs so far, and whether the run is finished."""
    class Cut(Exception): pass
    note = EpochNotes.note
    def note_and_cut(self, history):
        note(self, history)
        if len(history) == after: raise Cut
    EpochNotes.note = note_and_cut
    try: fit(data, apply_settings(get_recipe("marginal-log"), settings), out, device=device, progress=False, resume=True)
    except Cut: pass
    finally: EpochNotes.note = note
    return Run(out).read_history().epoch.tolist(), (out/"metrics.json").exists()


def contents(run):
    """What must not depend on how often a run was interrupted: every file but the log for TensorBoard and
    the times."""
    files = [
        p
        for p in sorted(run.rglob("*"))
        if p.is_file() and "tensorboard" not in p.parts and p.suffix != ".png" and p.name != "timings.csv"
    ]
    # pickles of equal content may differ in bytes
    read = lambda p: repr(torch.load(p, weights_only=True)) if p.suffix == ".pt" else p.read_bytes()
    return {str(p.relative_to(run)): read(p) for p in files}
