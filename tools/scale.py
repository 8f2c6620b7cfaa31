"""How the time and memory of a store grow: slices of data_sample, repeated and jittered, as store, check,
training and evaluation.

    python tools/scale.py 2000 20000 200000 --work FOLDER      # results:
    nbs/benchmarks/results/store_scale.json

Each command runs in a process of its own, whose largest resident memory the system tells at its end.
"""
import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT/"nbs/benchmarks/results/store_scale.json"
ANNOTATED = 2000
# 100 steps
SETTINGS = ["width=8", "labelled=450", "epochs=1", "second_phase=1", "batch_size=8", "tune_rule=False"]


class Jittered:
    """So many slices of data_sample: each moved by up to three pixels, with a little noise; a function of
    its number."""
    def __init__(self, count: int):
        import numpy as np
        from ctseg.data.challenge import read_challenge
        sample = read_challenge(ROOT/"data_sample")
        annotated = np.flatnonzero(sample.labelled)
        rng = np.random.default_rng(0)
        self.sample, self.count = sample, count
        self.original = rng.integers(0, len(sample), count)
        self.original[:ANNOTATED] = rng.choice(annotated, min(count, ANNOTATED))
        self.shift = rng.integers(-3, 4, (count, 2))
        self.names = [f"{i}.png" for i in range(count)]

    def image(self, i: int):
        import numpy as np
        moved = np.roll(self.sample.images[self.original[i]], self.shift[i], (0, 1))
        noise = np.random.default_rng(i).integers(-4, 5, moved.shape)
        return np.clip(moved + noise, 0, 255).astype(np.uint8)

    def mask(self, i: int, further: int = 0):
        import numpy as np
        return np.roll(self.sample.masks[self.original[i]], self.shift[i] + further, (0, 1))


def make_folder(count: int, folder: Path):
    """A challenge folder of jittered slices, the first 2,000 annotated; and a store of label maps, a pixel
    off the truth."""
    import numpy as np
    from PIL import Image
    from ctseg.core.json_files import write_json
    from ctseg.data.lazy import LazyPixels, ReadPixels, blank_like
    from ctseg.data.mask_csv import write_masks
    from ctseg.data.slices import SliceSet
    from ctseg.data.store import write_store
    made, images = Jittered(count), folder/"data"/"train-images"
    images.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(made.names):
        Image.fromarray(made.image(i)).save(images/name, compress_level=1)
    n, s = min(count, ANNOTATED), made.sample
    (folder/"masks").mkdir(exist_ok=True)
    for i, name in enumerate(made.names[:n]):
        Image.fromarray(made.mask(i)).save(folder/"masks"/name)
    (folder/"patients.csv").write_text("image,patient\n" + "".join(
        f"{name},{group}\n" for name, group in zip(made.names, s.groups[made.original])
    ))
    write_masks(np.stack([made.mask(i) for i in range(n)]), made.names[:n], folder/"data/y_train.csv")
    known = s.known[made.original]
    known[n:] = False
    write_json(
        [(np.flatnonzero(k) + 1).tolist() for k in known], folder/"data/annotated_labels.json", indent=None
    )
    write_json({"train": s.groups[made.original].tolist()}, folder/"data/patients.json", indent=None)
    s.classes.to_json(folder/"data/class_names.json")
    shape = (count, *s.images.shape[1:])
    labels = LazyPixels(ReadPixels(lambda rows: np.stack([made.mask(i, 1) for i in rows]), shape))
    everything = np.ones((count, len(s.classes)), bool)
    write_store(
        SliceSet(blank_like(labels), labels, everything, made.names, classes=s.classes),
        folder/"labels.zarr",
    )


def submit(place: Path):
    "Write the label maps of a store as a submission, as `ctseg predict --out s.csv` does at its end."
    from ctseg.data.store import read_store
    from ctseg.prediction.submission import collected_labels, write_submission
    labels = read_store(place)
    masks, keep = collected_labels(labels.masks, place.parent)
    for first in range(0, len(labels), 16):
        keep(range(first, first + 16), labels.masks[first:first + 16])
    write_submission(masks, list(labels.names), place.parent/"s.csv")


def time_steps(place: str, memory: str):
    """Train 100 steps of `ctseg` on a store, or with memory 'all' on its slices in memory; print the
    processor time of each step, of all threads."""
    import tempfile
    import warnings
    import ctseg
    from ctseg.data.store import read_store
    from ctseg.runs.recipe import apply_settings
    from ctseg.training.loop import Trainer
    warnings.simplefilter("ignore")
    seconds, step = [], Trainer.step
    def timed(self, index):
        begin = time.process_time()
        loss = step(self, index)
        seconds.append((self.phase.name, time.process_time() - begin))
        return loss
    Trainer.step = timed
    data = read_store(place).in_memory() if memory == "all" else place
    recipe = apply_settings(ctseg.get_recipe("ctseg"), SETTINGS)
    with tempfile.TemporaryDirectory() as d:
        run = ctseg.fit(
            data, recipe, f"{d}/run", device="cpu", progress=False, memory="" if memory == "all" else memory
        )
        from ctseg.data.cache import content_digest
        weights = content_digest([run.weights])
    print(json.dumps({"seconds": seconds, "weights": weights}))


def measured(words: list) -> tuple[float, float, str]:
    "Seconds, largest resident MB and output of a command in a process of its own."
    begin = time.monotonic()
    out = Path(words.pop())
    with open(out, "w") as f:
        child = subprocess.Popen(
            [sys.executable, *map(str, words)], stdout=f, stderr=subprocess.STDOUT, cwd=ROOT
        )
        _, status, usage = os.wait4(child.pid, 0)
    if status: sys.exit(f"{words}: status {status}\n{out.read_text()[-2000:]}")
    return round(time.monotonic() - begin, 1), round(usage.ru_maxrss/1024), out.read_text()


def typical_ms(text: str) -> dict:
    """The median of each phase's steps in ms of processor time, without its first five, and the hash of the
    weights."""
    told = json.loads(text.strip().splitlines()[-1])
    phases = {name: [s for phase, s in told["seconds"] if phase == name][5:] for name, _ in told["seconds"]}
    return {name: round(1000*sorted(s)[len(s)//2], 1) for name, s in phases.items()} | {
        "weights": told["weights"]
    }


def measure(count: int, work: Path, only: list[str]) -> dict:
    "Every command at one size, or some of them."
    folder = work/str(count)
    here = Path(__file__)
    if not (folder/"labels.zarr").exists():
        folder.mkdir(parents=True, exist_ok=True)
        measured([here, "--make", count, "--work", folder, folder/"out.txt"])
    store, out = folder/"store.zarr", folder/"out.txt"
    row: dict = {"slices": count}
    cli = ["-m", "ctseg"]
    pictures = [folder/"data/train-images", folder/"masks", folder/"imported.zarr", "--store"]
    labelling = ["--annotated", "all", "--patients", folder/"patients.csv"]
    commands = {
        "import": [*cli, "import", "png", *pictures, *labelling],
        "submission": [here, "--submit", folder/"labels.zarr"],
        "store": [*cli, "store", folder/"data", "--out", store],
        "check": [*cli, "check", store],
        "fit": [here, "--steps", store, "--memory", "10MB"],
        "evaluate": [*cli, "evaluate", store, folder/"labels.zarr"],
    }
    for name in only or commands:
        words = commands[name]
        made = {"store": store, "import": folder/"imported.zarr"}.get(name)
        if made: shutil.rmtree(made, ignore_errors=True)
        seconds, peak, text = measured([*words, out])
        row[name] = {"seconds": seconds, "peak MB": peak}
        if name == "fit": row["steps"] = typical_ms(text)
        print(count, name, row[name], flush=True)
    if only: return row
    sizes = [p.stat().st_size for p in store.rglob("*") if p.is_file()]
    row["store MB"], row["files"] = round(sum(sizes)/2**20, 1), len(sizes)
    if count <= ANNOTATED:
        again = ("all", "10MB", "all")  # in turn, since the machine has other work
        times = [
            typical_ms(measured([here, "--steps", store, "--memory", memory, out])[2]) for memory in again
        ]
        row["steps again"], row["steps in memory"] = times[1], [times[0], times[2]]
    print(json.dumps(row), flush=True)
    return row


def options(text: str, results: Path) -> argparse.ArgumentParser:
    "The options of this tool and of growth.py; `text` begins with what the tool is for."
    parser = argparse.ArgumentParser(description=text.splitlines()[0])
    parser.add_argument("counts", nargs="*", type=int)
    parser.add_argument("--work", type=Path, help="a folder for the slices; it is kept")
    parser.add_argument("--out", type=Path, default=results)
    parser.add_argument("--only", nargs="*", default=[], help="these commands; what is known of others stays")
    parser.add_argument("--make", type=int, help=argparse.SUPPRESS)
    return parser


def main():
    parser = options(__doc__, RESULTS)
    parser.add_argument("--submit", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--steps", help=argparse.SUPPRESS)
    parser.add_argument("--memory", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.submit: return submit(args.submit)
    if args.steps: return time_steps(args.steps, args.memory)
    if args.make: return make_folder(args.make, args.work)
    # nothing large is imported in this process: a child's largest memory counts what it has before it
    # starts its program
    machine = {"processor": platform.machine(), "threads": os.environ.get("OMP_NUM_THREADS", "all")}
    versions = {name: metadata.version(name) for name in ("torch", "zarr", "numpy")} | {
        "python": platform.python_version()
    }
    for count in args.counts:
        rows = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
        known = next((r for r in rows if r["slices"] == count), {})
        row = (known if args.only else {}) | measure(count, args.work, args.only)
        rows = sorted([r for r in rows if r["slices"] != count] + [row], key=lambda r: r["slices"])
        args.out.write_text(json.dumps({"machine": machine, "versions": versions, "rows": rows}, indent=1))


if __name__ == "__main__": main()
