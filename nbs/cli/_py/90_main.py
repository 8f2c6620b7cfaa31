# %% [markdown]
# # The command
#
# > `main`: where the `ctseg` command begins, and where every mistake ends in one line.
#
# - skip_showdoc: true

# %%
#| default_exp cli.main

# %%
#| export
import contextlib
import logging
import os
import sys
import warnings
from pathlib import Path

import typer

import ctseg
from ctseg.cli import (  # noqa: F401 they enter their commands
    data, evaluate, export, merge, prediction, segment, sharing, storing, suggest, training,
)
from ctseg.cli.console import SPEAKS, UsageError, app, clean_end, our_warnings, usage_line, write_any_letter
from ctseg.core.errors import InputError

# %%
#| hide
import contextlib
import io

from fastcore.test import test_eq

# %% [markdown]
# When something goes wrong, a command raises an exception. `main` turns it into one line and an exit status, so that scripts can tell what happened:
#
# | what happened | exit status |
# |---|---|
# | done | 0 |
# | a user's mistake, a full disk, no memory | 2, one line on standard error |
# | some scans of many could not be segmented | 3, one line for each |
# | stopped in time, to be continued | 75 |
# | interrupted by Ctrl-C | 130 |
# | ended by SIGTERM, SIGHUP | 143, 129 |

# %%
#| export
AGAIN = "see why above, then continue with the same command and --resume"


def close_quietly(stream) -> None:
    "What is still to be written to a stream that takes nothing any more goes nowhere, at the end of Python too."
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def tell(message: str, always: bool = False) -> None:
    "A line on standard error, from one of several processes; `always`: from each."
    if not SPEAKS and not always:
        return
    try:
        print(message, file=sys.stderr)
    except OSError:  # a full disk: the exit status still tells
        close_quietly(sys.stderr)


# %%
#| export
def lost_process(error: Exception) -> bool:
    "Is this how one of several processes learns that another has ended?"
    together = int(os.environ.get("WORLD_SIZE", 1)) > 1
    words = "closed by peer", "reset by peer", "Connection refused", "NCCL", "gloo", "Broken pipe"
    return together and isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def first_survivor() -> bool:
    "Has this process the lowest rank of those on this machine that still live?"
    import psutil
    ranks = []
    for process in psutil.Process(os.getppid()).children():
        with contextlib.suppress(psutil.Error, ValueError):
            if process.status() != psutil.STATUS_ZOMBIE:
                ranks.append(int(process.environ().get("RANK", "")))
    return int(os.environ.get("RANK", 0)) <= min(ranks, default=0)


# %%
#| export
LIMITS = {
    "can't start new thread": "the system gives no more threads or processes; "
                              "`ulimit -u` says how many, `ulimit -v` how much memory they may reserve",
    "failed to map segment": "out of memory",
    "an't allocate memory": "out of memory",
    "annot allocate memory": "out of memory",
}


def limit_reached(error: Exception) -> str:
    "What the system did not give, in words; '' for another error."
    if isinstance(error, MemoryError): return "out of memory"
    if not isinstance(error, (RuntimeError, ImportError, OSError)): return ""
    return next((remedy for words, remedy in LIMITS.items() if words in str(error)), "")


# %%
print(limit_reached(RuntimeError("can't start new thread")))
test_eq(limit_reached(RuntimeError("sizes do not match")), "")


# %%
#| export
def failure(error: Exception) -> int:
    "Tell in one line what went wrong, and return the exit status; an error of our own is raised again."
    if isinstance(error, UsageError):
        tell(usage_line(error, sys.argv[1:]))
    elif isinstance(error, InputError):
        if not getattr(error, "told", False):
            tell(f"ctseg: {error}", always=True)
    elif reached := limit_reached(error):
        tell(f"ctseg: {reached}", always=True)
    elif isinstance(error, OSError):  # a disk or a file, of which nothing has been told yet
        where = f"{error.filename}: " if error.filename else ""
        tell(f"ctseg: {InputError(f'{where}{error.strerror or error}')}", always=True)
    elif lost_process(error):
        if first_survivor():
            tell("ctseg: another process of this run has ended; " + AGAIN, always=True)
        sys.stderr.flush()
        os._exit(2)  # the group of processes is broken, and an orderly end would wait for it
    else:
        raise error
    return 2


# %%
with contextlib.redirect_stderr(io.StringIO()) as err: status = failure(InputError("my_data: no such folder"))
print(status, err.getvalue())

# %%
#| export
READERS = ("nibabel", "pydicom", "highdicom")


def quiet_libraries() -> None:
    """Silence what readers of medical files say of odd values: it fills the screen, and may hold a patient's name.

    `python -W` overrules it."""
    for name in READERS:
        if not sys.warnoptions:
            warnings.filterwarnings("ignore", module=rf"{name}(\.|$)")
        logging.getLogger(name).setLevel(logging.CRITICAL)


# %%
#| export
def run_command() -> int:
    "Parse the command line and carry it out; its exit status."
    with clean_end():
        # of a `typer.Exit`; commands return nothing
        status = app(prog_name="ctseg", standalone_mode=False) or 0
    if status == 130:
        raise KeyboardInterrupt
    if "ctseg.core.parallel" in sys.modules:
        sys.modules["ctseg.core.parallel"].leave(status)  # one of several processes ends here
    return status


# %%
#| export
def main() -> None:
    "The console script: carry out the command; tell a mistake in one line, with exit status 2."
    if not SPEAKS:
        warnings.simplefilter("ignore")
    write_any_letter()
    package = Path(ctseg.__file__).parent
    warnings.formatwarning = our_warnings(package, warnings.formatwarning)
    quiet_libraries()
    try:
        sys.exit(run_command())
    except (KeyboardInterrupt, typer.Abort):
        tell("\nctseg: interrupted")
        sys.exit(130)
    except BrokenPipeError:  # `ctseg … | head`
        close_quietly(sys.stdout)
    except Exception as e:
        sys.exit(failure(e))


# %%
def command(*words):
    "The command in this process: exit status and what it printed."
    before, sys.argv = sys.argv, ["ctseg", *words]
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err): main()
    except SystemExit as e: return e.code, out.getvalue() + err.getvalue()
    finally: sys.argv = before

for words in (["check", "no-such-folder"], ["fit", "--epochs", "5"], ["recpies"]):
    print(*command(*words))
