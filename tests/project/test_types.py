"Pyright, where it is installed, finds no attribute and no name in the package that its types do not have."
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pyright")
ROOT = Path(__file__).resolve().parents[2]


def findings(*command: str, folder: Path = ROOT) -> dict:
    "What pyright says, as JSON; skipped where it cannot start, for it fetches Node.js when there is none."
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", *command],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if done.returncode not in (0, 1): pytest.skip(f"pyright does not run here: {done.stderr[-200:]}")
    return json.loads(done.stdout)


def places(found: dict) -> list[str]:
    "File, line and rule of each error."
    errors = [f for f in found["generalDiagnostics"] if f["severity"] == "error"]
    return [f"{f['file']}:{f['range']['start']['line'] + 1} {f.get('rule')}: {f['message']}" for f in errors]


def test_package_has_no_unknown_attribute():
    found = findings()
    assert found["summary"]["filesAnalyzed"] >= len(list((ROOT/"ctseg").rglob("*.py")))
    assert not places(found)


def test_faults_are_found(tmp_path):
    "The rules of pyproject.toml are in force: each fault is found, and nothing else."
    (tmp_path/"ctseg").mkdir()
    (tmp_path/"ctseg"/"x.py").write_text("def f(x: object): return x.y, z\nn: int = ''\n")
    (tmp_path/"pyproject.toml").write_text((ROOT/"pyproject.toml").read_text())
    rules = [line.split()[1] for line in places(findings(folder=tmp_path))]
    assert rules == ["reportAttributeAccessIssue:", "reportUndefinedVariable:"]
