"The Kaggle notebooks: metadata by Kaggle's own client, the wheel, and a session that is cut and continued."
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("on_kaggle", ROOT/"tools"/"on_kaggle.py")
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tool.write_dataset(tmp_path_factory.mktemp("kaggle")/"ctseg-wheel", "somebody")


def test_image_has_what_the_package_needs():
    assert tool.missing(tool._settings()["requirements"].split()) == []
    assert tool.missing(["torch>=99", "nowhere", "numpy>=1"]) == ["torch>=99", "nowhere"]


def test_the_wheel_holds_the_package_alone(dataset):
    wheel, = dataset.glob("*.whl")
    with zipfile.ZipFile(wheel) as z:
        names = z.namelist()
        said = z.read(next(n for n in names if n.endswith("dist-info/METADATA"))).decode()
        scripts = z.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    assert (
        wheel.name.endswith("-py3-none-any.whl")
        and "ctseg/models/attunet.py" in names
        and "ctseg/methods/unimatch.py" in names
    )
    assert not [n for n in names if not n.startswith("ctseg")], "something beside the package is in the wheel"
    assert "ctseg = ctseg.cli:main" in scripts
    assert (
        "Requires-Python: >=3.11" in said
        and "Provides-Extra: volumes" in said
        and "License: Apache-2.0" in said
        and "# ctseg" in said
    )
    links = re.findall(r"\]\(([^)\s]+)", said)
    assert len(links) > 15 and not [
        x for x in links if not x.startswith("https://")
    ], "a package index has none of the repository's files"
    assert (
        "](https://github.com/ctseg/ctseg/raw/main/nbs/images/index-demo.png)" in said
        and "](https://github.com/ctseg/ctseg/blob/main/REPORT.pdf)" in said
    )
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT/"ctseg").rglob("*.py")}
    assert modules == {n for n in names if n.endswith(".py")}


def test_dataset_metadata(dataset):
    facts = tool.check_dataset(dataset)
    assert facts["slug"] == "somebody/ctseg-wheel" and len(facts["files"]) == 1
    (dataset/"lib-1-cp311-linux_x86_64.whl").touch()
    with pytest.raises(ValueError, match="pure wheels"): tool.check_dataset(dataset)
    (dataset/"lib-1-cp311-linux_x86_64.whl").unlink()


@pytest.mark.parametrize("name", tool.NAMES)
def test_kernel_metadata(name, tmp_path):
    facts = tool.check_kernel(tool.write_kernel(name, tmp_path/name, "somebody"))
    assert (
        facts["slug"] == f"somebody/ctseg-{name.replace('_', '-')}"
        and "somebody/ctseg-wheel" in facts["inputs"]
        and not facts["internet"]
    )


@pytest.mark.parametrize("change, "
                         "why", [({"language": "pyhton"}, "language"), ({"dataset_sources": ["ctseg-wheel"]}, "form"), ({"enable_internet": True}, "internet"),
                                         ({"title": "another title"}, "address"), ({"code_file": "gone.ipynb"}, "not found"), ({"machine_shape": "NvidiaTeslaP100"}, "T4")])
def test_wrong_kernel_metadata_is_refused(change, why, tmp_path):
    folder = tool.write_kernel("supervised", tmp_path/"k", "somebody")
    meta = json.loads((folder/"kernel-metadata.json").read_text())
    (folder/"kernel-metadata.json").write_text(json.dumps(meta | change))
    with pytest.raises(ValueError, match=why): tool.check_kernel(folder)


@pytest.mark.parametrize("name", tool.NAMES)
def test_notebook_is_made_for_kaggle(name):
    cells = json.loads((tool.KERNELS/name/f"{name}.ipynb").read_text())["cells"]
    tagged = ["".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", [])]
    code = "".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    assert len(tagged) == 1 and all(f"{p} =" in tagged[0] for p in ("recipe", "settings", "seed", "hours"))
    assert (
        "--no-index" in code and "--no-deps" in code and '"/kaggle/input' not in code
    ), "inputs are found, not assumed"
    assert set(tool.SHOWN[name]) <= {line.split(" =")[0] for line in tagged[0].splitlines() if " =" in line}


def install_cell(name: str) -> str:
    "The cell that installs the package."
    cells = json.loads((tool.KERNELS/name/f"{name}.ipynb").read_text())["cells"]
    cell, = (source for c in cells if "--no-deps" in (source := "".join(c["source"])) and c["cell_type"] == "code")
    return cell


def test_every_notebook_installs_alike():
    assert len({install_cell(name) for name in tool.NAMES}) == 1


@pytest.fixture(scope="module")
def github(tmp_path_factory):
    "A repository that stands in for the one on GitHub, where git is told so; it builds without an index."
    copy = tmp_path_factory.mktemp("github")/"ctseg"
    tool.copy_source(copy)
    git = ["git", "-C", str(copy), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *words], check=True)
    return copy


def install(root: Path, github: Path) -> tuple[subprocess.CompletedProcess, Path]:
    "Run the cell in an image of its own; also where the package would then be."
    python = tool.make_image(root/"image")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "CTSEG_KAGGLE_ROOT": str(root),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{github.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://github.com/ctseg/ctseg",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip's way to say yes
    }
    cell = [str(python), "-c", install_cell("start_here")]
    done = subprocess.run(cell, env=env, cwd=root, capture_output=True, text=True)
    return done, Path(sysconfig.get_path("purelib", vars={"base": str(root/"image")}))/"ctseg"


def test_without_the_wheel_the_package_comes_from_github(tmp_path, github):
    done, package = install(tmp_path, github)
    assert done.returncode == 0, done.stderr
    assert (package/"models"/"attunet.py").exists()


def test_with_neither_wheel_nor_internet_one_line_tells_what_to_do(tmp_path):
    done, package = install(tmp_path, tmp_path/"nowhere")
    assert done.returncode == 1 and not package.exists()
    told, = done.stderr.strip().splitlines()
    assert "attach the data set ctseg-wheel (Add Input) or turn Internet on (Settings)" in told
    assert "pip: fatal: " in told and "nowhere" in told


def test_a_session_is_cut_and_continued(tmp_path):
    """Without root the environment's root stands in for /kaggle; `CTSEG_REHEARSAL=mount` mounts it and cuts
    the network."""
    isolate = os.environ.get("CTSEG_REHEARSAL") == "mount"
    python, notebook = tool.make_image(tmp_path/"image"), tool.KERNELS/"supervised"/"supervised.ipynb"
    settings = dict(settings=[*tool.TINY, "epochs=2"])

    first = tmp_path/"first"
    tool.mount_inputs(first, size=32)
    done = tool.execute(notebook, first, python, settings | {"hours": 0.0001}, isolate)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (
        any("not finished" in t for t in tool.outputs(first))
        and not (first/"working"/"submission.csv").exists()
    )

    second = tmp_path/"second"
    shutil.copytree(first/"input", second/"input")
    shutil.copytree(first/"working", second/"input"/"notebooks"/"somebody"/"ctseg-supervised")
    (second/"working").mkdir()
    done = tool.execute(notebook, second, python, settings, isolate)
    assert done.returncode == 0, done.stderr[-3000:]
    said = "\n".join(tool.outputs(second))
    assert "going on from" in said and "finished" in said and "not finished" not in said
    from ctseg.data.challenge import check_submission
    check_submission(second/"working"/"submission.csv", second/"input"/"datasets"/"somebody"/"raidium-ct")
    assert (second/"working"/"report.html").stat().st_size > 10_000
    assert (second/"working"/"supervised"/"recipe.json").read_bytes() == (
        first/"working"/"supervised"/"recipe.json"
    ).read_bytes(), "another run was started"


def test_one_failed_member_leaves_the_others(tmp_path, capsys, monkeypatch):
    from ctseg import kaggle
    from ctseg.core.errors import InputError
    def watch(command, *_):
        run = next(Path(x) for x in command if "fold-" in str(x))
        if run.name in bad: raise InputError("the training ended with status 2: no finite loss")
        run.mkdir(parents=True, exist_ok=True)
        (run/"metrics.json").write_text("{}")
    monkeypatch.setattr(kaggle, "watch", watch)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    runs = {tmp_path/f"fold-{k}": [] for k in range(3)}
    bad = ["fold-1"]
    assert kaggle.train_each("data", runs, "masked") == [tmp_path/"fold-0", tmp_path/"fold-2"]
    said = capsys.readouterr().out
    assert (
        f"{tmp_path/'fold-1'}: the training ended with status 2: no finite loss" in said
        and said.count("no GPU: ") == 1
    )
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    bad, runs = ["fold-7", "fold-8"], {tmp_path/"fold-7": [], tmp_path/"fold-8": []}
    with pytest.raises(InputError, match="no finite loss"): kaggle.train_each("data", runs, "masked")
    assert "no GPU" not in capsys.readouterr().out


TORCHRUN = """W1128 09:00:00.000 api.py:900] Sending process 7 closing signal SIGTERM
E1128 09:00:00.001 api.py:874] failed (exitcode: 2) local_rank: 0 (pid: 6) of binary: python
Traceback (most recent call last):
  File "run.py", line 900, in main
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
ctseg FAILED
============================================================
"""


@pytest.mark.parametrize("before, "
                         "told", [("ctseg: data/y_train.csv: no such file", "ctseg: data/y_train.csv: no such file"),
                                          ("ctseg: "
                                           "a "
                                           "warning\n[rank0]: "
                                           "RuntimeError: "
                                           "a "
                                           "defect", "[rank0]: RuntimeError: a defect"), ("Killed", "====")])
def test_the_mistake_is_told_not_torchruns_page_about_it(before, told, capsys):
    from ctseg import kaggle
    from ctseg.core.errors import InputError
    with pytest.raises(InputError) as e:
        kaggle.watch(
            [sys.executable, "-c", f"import sys; print({before + chr(10) + TORCHRUN!r}); sys.exit(1)"]
        )
    assert (
        str(e.value).startswith("the training ended with status 1: " + told)
        and "ChildFailedError" in capsys.readouterr().out
    )


def test_a_line_of_another_encoding_is_shown(capsys):
    from ctseg import kaggle
    kaggle.watch([sys.executable, "-c", r"import sys; sys.stdout.buffer.write(b'M\xfcller \xe2\x80\xa6\n')"])
    assert capsys.readouterr().out == "M\ufffdller …\n"


def test_a_run_is_continued_only_where_there_is_one(tmp_path):
    "So that no line about a missing run frightens anybody in the first session."
    from ctseg import kaggle
    command = lambda: kaggle.fit_command("data", tmp_path, "masked", ["width=4"], 0, 0)
    assert "--resume" not in command()
    (tmp_path/"recipe.json").touch()
    assert "--resume" in command()


def test_the_run_that_got_furthest_is_gone_on_with(tmp_path, monkeypatch):
    "Finished before cut, then by epochs, then by steps within an epoch; the path decides last."
    from ctseg import kaggle
    monkeypatch.setattr(kaggle, "kaggle_root", lambda: tmp_path)
    for name, epochs, step, finished in [
        ("a", 3, 40, False),
        ("b", 3, 120, False),
        ("c", 2, 999, False),
        ("d", 3, None, True),
        ("e", 3, 120, False),
    ]:
        run = tmp_path/"input"/name/"run"
        run.mkdir(parents=True)
        (run/"recipe.json").write_text("{}")
        (run/"history.csv").write_text("epoch\n" + "1\n"*epochs)
        if step: (run/"checkpoints"/"student"/f"step-{step:07d}").mkdir(parents=True)
        if finished: (run/"metrics.json").write_text("{}")
    assert [r.parent.name for r in kaggle.find_runs("run")] == ["d", "b", "e", "a", "c"]
    assert [r.parent.name for r in kaggle.find_runs("run", finished=True)] == ["d"]


@pytest.mark.skipif(sys.platform == "win32", reason="such a name cannot be given there")
def test_no_terminal_obeys_the_name_of_a_folder(tmp_path, monkeypatch, capsys):
    from ctseg import kaggle
    monkeypatch.setattr(kaggle, "kaggle_root", lambda: tmp_path)
    odd = tmp_path/"input"/"\x1b[31mred"
    (odd/"run").mkdir(parents=True)
    (odd/"run"/"recipe.json").write_text("{}")
    for name in ("a.csv", "b.csv"): (odd/name).write_text("1")
    assert kaggle.only_one("y_train.csv", [odd/"a.csv", odd/"b.csv"]) == odd/"a.csv"
    kaggle.carry_on("run")
    told = capsys.readouterr().out
    assert "\x1b" not in told and told.count(r"\x1b[31mred") == 2
