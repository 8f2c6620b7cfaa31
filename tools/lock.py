"""Write `requirements.lock`: what `make setup` installs on Linux (x86_64), each file by its hash.

    .venv/bin/python tools/lock.py python3.11 python3.12 python3.13

The versions are those of the environment that this runs in, where all tests passed. pip says for each of the given
Pythons which files it would take. torch and torchvision are left out: which build of them suits a machine is for
pip's configuration and `constraints.txt` to say.
"""
import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = "dev,volumes,zoo,weights,metrics,hub,onnx,openvino,store,monai,lightning"
BUILDS = ("torch", "torchvision")  # of many kinds, for many devices
TOOLS = ("pip", "setuptools", "wheel", "ctseg")
# package → version of Python → its version, the hash of its file
Files = dict[str, dict[str, tuple[str, str]]]


def stand_in(name: str, version: str, folder: Path) -> None:
    "A wheel of this name and version that holds nothing and needs nothing, for pip to find before the real one."
    release = f"{version.partition('+')[0]}+lock"
    info = f"{name}-{release}.dist-info"
    with zipfile.ZipFile(folder/f"{name}-{release}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {release}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def tried_together() -> dict[str, str]:
    "Package → version, of this environment."
    installed = {canonicalize_name(d.metadata["Name"]): d.version for d in metadata.distributions()}
    return {name: version for name, version in installed.items() if name not in TOOLS}


def files_for(python: str, constraints: Path, wheels: Path) -> tuple[str, dict[str, tuple[str, str]]]:
    "The version of a Python, and what pip would install there: package → version and hash."
    report = constraints.with_name("report.json")
    quiet = ["--quiet", "--disable-pip-version-check", "--dry-run", "--ignore-installed"]
    where = ["--find-links", str(wheels), "-c", str(constraints), "--report", str(report)]
    subprocess.run([python, "-m", "pip", "install", *quiet, *where, f"{ROOT}[{EXTRAS}]"], check=True)
    found = json.loads(report.read_text())
    files = {}
    for item in found["install"]:
        name = canonicalize_name(item["metadata"]["name"])
        if name in BUILDS or name in TOOLS: continue
        hashes = item["download_info"]["archive_info"]["hashes"]
        files[name] = item["metadata"]["version"], hashes["sha256"]
    return ".".join(found["environment"]["python_full_version"].split(".")[:2]), files


def locked_lines(by_python: Files, pythons: list[str]) -> list[str]:
    "The lock: a line a package and version, with a marker where not all Pythons take it."
    lines = []
    for name, files in sorted(by_python.items()):
        for version in sorted({version for version, _ in files.values()}):
            own = sorted(python for python, (v, _) in files.items() if v == version)
            hashes = sorted({sha for v, sha in files.values() if v == version})
            marker = " or ".join(f'python_version == "{python}"' for python in own)
            only = f" ; {marker}" if own != sorted(pythons) else ""
            Requirement(f"{name}=={version}{only}")
            parts = [f"{name}=={version}{only}", *(f"--hash=sha256:{sha}" for sha in hashes)]
            lines.append(" \\\n    ".join(parts))
    return lines


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("pythons", nargs="*", default=[sys.executable], help="commands; else this Python")
    pythons = p.parse_args().pythons
    with tempfile.TemporaryDirectory() as d:
        tried, wheels = tried_together(), Path(d)/"wheels"
        wheels.mkdir()
        for name in BUILDS: stand_in(name, tried[name], wheels)
        constraints = Path(d)/"constraints.txt"
        pinned = (f"{name}=={version.partition('+')[0]}" for name, version in sorted(tried.items()))
        constraints.write_text("\n".join(pinned) + "\n")
        by_python: Files = {}
        seen = []
        for python in pythons:
            version, files = files_for(python, constraints, wheels)
            seen.append(version)
            for name, file in files.items():
                by_python.setdefault(name, {})[version] = file
    head = f"# Written by tools/lock.py for Linux (x86_64) and Python {', '.join(seen)}; see there."
    (ROOT/"requirements.lock").write_text("\n".join([head, *locked_lines(by_python, seen)]) + "\n")
    print(f"requirements.lock: {len(by_python)} packages for Python {', '.join(seen)}")


if __name__ == "__main__":
    main()
