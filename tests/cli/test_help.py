"Help is whole and true, completion completes, and no terminal has too few letters."
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from ctseg.cli import app, main
from ctseg.cli.console import UsageError, WholeHelp

ROOT = Path(__file__).resolve().parents[2]
GROUP = typer.main.get_command(app)
COMMANDS = ["", *GROUP.commands]


@pytest.fixture
def through(monkeypatch):
    "The command with output through a pipe of some encoding and width: status, output and errors as bytes."
    def run(*args, encoding="utf-8", columns=80):
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys, "argv", ["ctseg", *map(str, args)])
        streams = [io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2)]
        with monkeypatch.context() as m:
            m.setattr(sys, "stdout", streams[0])
            m.setattr(sys, "stderr", streams[1])
            with pytest.raises(SystemExit) as stop: main()
        for s in streams: s.flush()
        return stop.value.code, *(s.buffer.getvalue() for s in streams)
    return run


def words(text): return re.sub(r"-\s+", "-", " ".join(text.split()))


@pytest.mark.parametrize("columns", [80, 40])
@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_whole(through, name, columns):
    """No text is cut: every word of each explanation is there, and nothing runs over the width but single
    long words."""
    code, out, err = through(*filter(None, [name]), "--help", columns=columns)
    text = out.decode()
    assert (
        code == 0
        and not err
        and "..." not in re.sub(r"\.\.\.(?=[\s<]|$)", "", re.sub(r"\w+\.\.\.|\}\.\.\.|\]\.\.\.", "", text))
    )
    command = GROUP.commands[name] if name else GROUP
    explained = [p.help for p in command.params if getattr(p, "help", None)]
    if not name: explained += [c.help for c in GROUP.commands.values()]
    for help in [command.help, *explained]: assert words(help) in words(text), help


@pytest.mark.parametrize("name", list(GROUP.commands))
def test_every_help_ends_with_an_example_that_is_understood(through, name):
    example = GROUP.commands[name].epilog
    told = through(name, "--help")[1].decode().rstrip().splitlines()
    assert [line.strip() for line in told[-2:]] == ["Example:", example]
    program, command, *args = shlex.split(example)
    assert (program, command) == ("ctseg", name)
    GROUP.commands[name].make_context(name, args)


def test_commands_are_told_in_the_order_of_their_use(through):
    assert set(WholeHelp.ORDER) == set(GROUP.commands)
    text = through("--help")[1].decode()
    places = [re.search(rf"^  {name} ", text, re.M).start() for name in WholeHelp.ORDER]
    assert places == sorted(places)


@pytest.mark.parametrize("name", list(GROUP.commands))
def test_every_argument_and_option_says_what_it_is(name):
    silent = [p.name for p in GROUP.commands[name].params if not getattr(p, "help", None)]
    assert not silent and GROUP.commands[name].help


def test_the_default_recipe_is_named(through):
    from ctseg.recipes.table import DEFAULT_RECIPE
    assert f"left out: {DEFAULT_RECIPE} " in words(through("fit", "--help")[1].decode())


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_no_letter_is_too_many(through, encoding, tmp_path):
    data = tmp_path/"größe→…\u0416"
    calls = [(*filter(None, [name]), "--help") for name in COMMANDS] + [
        ("recipes",),
        ("recipes", "unimatch"),
        ("check", data),
        ("fit", data, "--out", data),
    ]
    calls += [
        ("predict", data, "--images", data, "--out", f"{data}.csv"),
        ("evaluate", data, data),
        ("import", "png", data, data, data),
        ("report", data),
    ]
    calls += [
        ("check", ROOT/"data_sample"),
        ("export", "rle", data, f"{data}.csv", "--masks", data),
        ("phantom", tmp_path/"p", "--seed", "-1"),
        ("demo", "--data", data, "--out", tmp_path/"demo"),
    ]
    for call in calls:
        code, out, err = through(*call, encoding=encoding)
        assert code in (0, 2) and (out or err) and b"Traceback" not in err, call
        (out + err).decode(encoding)
        assert (
            code == 0 or b"->..." in err or b"\x85" in err or b"seed" in err or str(data) not in str(call)
        ), err
    code, out, err = through("check", data, encoding=encoding)
    assert b"->" in err and b"?" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("env", [{"PYTHONIOENCODING": "cp1252"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}], ids=["cp1252", "C"])
def test_a_process_with_few_letters(tmp_path, env):
    name = os.fsencode(tmp_path) + "/größe→\u0416".encode()
    p = subprocess.run(
        [sys.executable, "-m", "ctseg", "check", name],
        capture_output=True,
        env=os.environ | env | {"PYTHONPATH": str(ROOT)},
    )
    assert (
        p.returncode == 2
        and b"no such folder" in p.stderr
        and b"Traceback" not in p.stderr
        and len(p.stderr.splitlines()) == 1
    )


OPTIONS = [(name, option) for name, command in GROUP.commands.items()
           for option in command.params if option.param_type_name == "option" and option.name != "help"]


@pytest.mark.parametrize("name, option", OPTIONS, ids=[f"{name} {option.opts[0]}" for name, option in OPTIONS])
def test_an_option_of_one_value_is_given_once_and_another_with_each_value_once(name, option):
    def words(value): return [option.opts[0], *([] if option.is_flag else [value])]
    def refused(words):
        try: GROUP.commands[name].make_context(name, [*words, "x", "y"], resilient_parsing=False)
        except UsageError as e: return "twice" in e.format_message()
        return False
    assert refused(words("2")*2)
    assert refused(words("2") + words("3")) is not option.multiple


def completed(line: str) -> list[str]:
    "What bash would offer after a line."
    words = line.split(" ")
    env = os.environ | {
        "_CTSEG_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        "PYTHONPATH": str(ROOT),
    }
    p = subprocess.run([sys.executable, "-m", "ctseg"], capture_output=True, text=True, env=env)
    assert p.returncode == 0 and not p.stderr
    return p.stdout.split()


def test_completion_in_bash():
    assert completed("ctseg re") == ["recipes", "report"]
    assert completed("ctseg fit --re") == ["--recipe", "--resume"]
    assert completed("ctseg import n") == ["nifti", "nnunet"] and completed("ctseg export ") == [
        "nifti",
        "dicom-seg",
        "rtstruct",
        "nnunet",
        "rle",
        "onnx",
    ]


def test_the_script_for_bash():
    p = subprocess.run(
        [sys.executable, "-m", "ctseg", "--show-completion", "bash"],
        capture_output=True,
        text=True,
        env=os.environ | {"_CTSEG_COMPLETE": "source_bash", "PYTHONPATH": str(ROOT)},
    )
    assert p.returncode == 0 and "complete -o default -F _ctseg_completion ctseg" in p.stdout
    check = subprocess.run(["bash", "-n"], input=p.stdout, capture_output=True, text=True)
    assert check.returncode == 0, check.stderr
