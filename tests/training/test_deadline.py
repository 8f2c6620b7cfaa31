"Stopped in time: by a limit, by the host, in training and beside it."
import os
import signal
import subprocess
import sys
import time

import pytest
from helpers.processes import start
from helpers.runs import command, contents
from helpers.toys import SMALL_RUN as SMALL, tiny, toy

from ctseg.data.challenge import write_challenge
from ctseg.recipes.fit import fit
from ctseg.runs.job import Job
from ctseg.training.deadline import Deadline, Stopped


def write(slices, folder):
    write_challenge(slices, folder, "train")
    return folder


@pytest.mark.parametrize("how", ["time limit", "SIGTERM"])
def test_stopped_by_the_clock_or_the_host(tmp_path, how, capfd):
    data = write(toy(), tmp_path/"data")
    fit_args = [
        "fit",
        data,
        "--recipe",
        "mean-teacher",
        "--device",
        "cpu",
        *[x for s in [SMALL[0], *SMALL[2:4], "epochs=8", "model=tiny-for-tests"] for x in ("--set", s)],
    ]
    p = start(command, *fit_args, "--out", tmp_path/"whole")
    p.join()
    assert p.exitcode == 0
    run, stops = tmp_path/"run", 0
    while stops < 17:  # each gets at least one of the 16 steps done
        p = start(
            command,
            *fit_args,
            "--out",
            run,
            "--resume",
            *(["--time-limit", "1.2s"] if how == "time limit" else [])
        )
        if how == "SIGTERM" and not stops:
            while not (run/"checkpoints").exists(): time.sleep(0.01)
            os.kill(p.pid, signal.SIGTERM)
        p.join()
        if p.exitcode == 0: break
        assert p.exitcode == 75
        stops += 1
    assert stops and contents(run) == contents(tmp_path/"whole")
    first, *said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("ctseg:")]
    assert "no run in" in first  # `--resume` from the start says so, once
    assert len(said) == stops and all(how in line and "--resume" in line for line in said)


def test_stopped_while_the_rule_is_chosen(tmp_path, monkeypatch):
    "What is trained is not trained again, and the end is the same."
    import ctseg.recipes.fit
    recipe, choose = tiny("masked", "folds=3"), ctseg.prediction.choose.choose_rule
    whole = fit(toy(), recipe, tmp_path/"whole", device="cpu", progress=False)
    assert 0 < len(Job(recipe, toy(), whole).holdout) <= 16
    monkeypatch.setattr(
        ctseg.recipes.fit,
        "choose_rule",
        lambda *a, each, **options: choose(
            *a, **options, each=lambda items: Deadline(0).each([*items]*2, "here")
        ),
    )
    with pytest.raises(Stopped, match="time limit: stopped here"):
        fit(toy(), recipe, tmp_path/"run", device="cpu", progress=False, time_limit="1h")
    final = tmp_path/"run"/"checkpoints"/"supervised"/"final"
    before = final.stat().st_mtime_ns
    assert not (tmp_path/"run"/"metrics.json").exists()
    monkeypatch.setattr(ctseg.recipes.fit, "choose_rule", choose)
    fit(toy(), recipe, tmp_path/"run", device="cpu", progress=False, resume=True)
    assert contents(tmp_path/"run") == contents(tmp_path/"whole") and final.stat().st_mtime_ns == before


def test_what_another_process_hears_stops_this_one_too():
    heard = iter([False, True])
    with pytest.raises(Stopped, match="another process: stopped here"):
        [*Deadline().each(range(9), "here", lambda mine: mine or next(heard))]
    assert list(heard) == []


def test_stopped_while_the_teacher_labels(tmp_path, monkeypatch):
    from ctseg.methods import pseudo, teacher_student
    label = pseudo.pseudo_label
    monkeypatch.setattr(
        teacher_student,
        "pseudo_label",
        lambda *a: label(*a[:-1], lambda items: Deadline(0).each([*items]*2, "there")),
    )
    with pytest.raises(Stopped, match="stopped there"):
        fit(
            toy(),
            tiny("original-teacher-student"),
            tmp_path/"run",
            device="cpu",
            progress=False,
            time_limit="1h",
        )
    assert (tmp_path/"run"/"checkpoints"/"teacher"/"final").exists()


TERMINAL = """
import signal
from ctseg.training.deadline import Deadline
for ignored in (False, True):  # as nohup does
    signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    with Deadline() as deadline:
        signal.raise_signal(signal.SIGHUP)
        print(repr(deadline.why()))
    assert signal.getsignal(signal.SIGHUP) == (signal.SIG_IGN if ignored else signal.SIG_DFL)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no terminals that are lost")
def test_a_lost_terminal_is_an_end_unless_somebody_wants_it_ignored():
    done = subprocess.run([sys.executable, "-c", TERMINAL], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split() == ["'SIGHUP'", "''"], done.stderr


RARE = [name for name in ("SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGQUIT") if hasattr(signal, name)]

# In a process of its own: another test, or a library, may have its own idea of these signals.
EACH = """
import signal
import sys
from ctseg.training.deadline import Deadline
for name in sys.argv[1:]:
    number = getattr(signal, name)
    for used in (False, True):
        heard = []
        signal.signal(number, (lambda *_: heard.append(name)) if used else signal.SIG_DFL)
        with Deadline() as outer, Deadline() as inner:  # the console's and the run's
            signal.raise_signal(number)
        assert (inner.why(), outer.why(), heard) == (("", "", [name]) if used else (name, "", [])), (name, used)
    print(name)
"""

def test_a_signal_that_no_one_else_uses_is_an_end():
    done = subprocess.run([sys.executable, "-c", EACH, *RARE], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split() == RARE, done.stderr
