"Tables and templates that the package reads come with it, in a wheel and in a source distribution."
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
TOP = ("settings.ini", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md",
       "constraints.txt", "requirements.lock")
SKIP = shutil.ignore_patterns("__pycache__", "*.pyc", "*.ipynb")
DATA = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT/"ctseg").rglob("*")
              if p.is_file() and p.suffix not in (".py", ".pyc") and "__pycache__" not in p.parts)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The folder with a wheel and a source distribution, built from a copy: setuptools leaves files beside
    its sources."""
    copy = tmp_path_factory.mktemp("source")
    for name in TOP:
        shutil.copy(ROOT/name, copy)
    shutil.copytree(ROOT/"ctseg", copy/"ctseg", ignore=SKIP)
    for command in (["sdist"], ["bdist_wheel"]):
        subprocess.run(
            [sys.executable, "setup.py", "-q", *command], cwd=copy, check=True, capture_output=True
        )
    return copy/"dist"


def test_there_is_data():
    assert "ctseg/io/snomed.csv" in DATA


def test_wheel_has_the_data(built):
    names = zipfile.ZipFile(next(built.glob("*.whl"))).namelist()
    assert "ctseg/io/dicom_seg.py" in names and not set(DATA) - set(names)


def test_source_distribution_has_the_data(built):
    names = tarfile.open(next(built.glob("*.tar.gz"))).getnames()
    inside = {PurePosixPath(*PurePosixPath(name).parts[1:]).as_posix() for name in names}
    assert "ctseg/io/dicom_seg.py" in inside and not set(DATA) - inside


def test_the_extra_all_leaves_frameworks_to_those_who_have_them(built):
    wheel = zipfile.ZipFile(next(built.glob("*.whl")))
    (metadata,) = [name for name in wheel.namelist() if name.endswith("METADATA")]
    lines = wheel.read(metadata).decode().splitlines()
    asked = [Requirement(line.partition(": ")[2]) for line in lines if line.startswith("Requires-Dist")]
    names = {extra: {r.name for r in asked if r.marker and r.marker.evaluate({"extra": extra})}
             for extra in ("all", "nnunet", "monai", "lightning", "dev", "volumes", "onnx")}
    apart = names["nnunet"] | names["monai"] | names["lightning"] | {"pytest"}
    assert len(apart) == 4 and not names["all"] & apart
    assert names["volumes"] | names["onnx"] <= names["all"]
