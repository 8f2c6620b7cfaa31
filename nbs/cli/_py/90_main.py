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
import os
import sys
import warnings
from pathlib import Path

import typer

import ctseg
from ctseg.cli import data, evaluate, export, prediction, segment, sharing, training  # they enter their commands
from ctseg.cli.console import SPEAKS, UsageError, app, clean_end, our_warnings, usage_line, write_any_letter
from ctseg.core.files import InputError

# %%
#| hide
import contextlib
import io

from fastcore.test import test_eq


# %% [markdown]
# Commands raise, and one place decides what the shell sees.
#
# | what happened | exit status |
# |---|---|
# | done | 0 |
# | a user's mistake, a full disk, no memory | 2, one line on standard error |
# | some scans of many could not be segmented | 3, one line for each |
# | stopped in time, to be continued | 75 |
# | interrupted by Ctrl-C | 130 |
# | ended by SIGTERM | 143 |

# %%
#| export
def tell(message: str, always: bool = False) -> None:
    "A line on standard error, from one of several processes; `always`: from each."
    if SPEAKS or always:
        print(message, file=sys.stderr)


def failure(error: Exception) -> int:
    "Tell in one line what went wrong, and return the exit status; an error of our own is raised again."
    if isinstance(error, UsageError):
        tell(usage_line(error, sys.argv[1:]))
    elif isinstance(error, MemoryError):
        tell("ctseg: out of memory", always=True)
    elif isinstance(error, InputError):
        if not getattr(error, "told", False):
            tell(f"ctseg: {error}", always=True)
    elif isinstance(error, OSError):  # a disk or a file that nothing nearer has told of
        where = f"{error.filename}: " if error.filename else ""
        tell(f"ctseg: {where}{error.strerror or error}", always=True)
    else:
        raise error
    return 2


# %%
with contextlib.redirect_stderr(io.StringIO()) as err: status = failure(InputError("my_data: no such folder"))
print(status, err.getvalue())


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


def main() -> None:
    "The console script: `app`, with mistakes told in one line and exit status 2."
    if not SPEAKS:
        warnings.simplefilter("ignore")
    write_any_letter()
    package = Path(ctseg.__file__).parent
    warnings.formatwarning = our_warnings(package, warnings.formatwarning)
    try:
        sys.exit(run_command())
    except (KeyboardInterrupt, typer.Abort):
        tell("\nctseg: interrupted")
        sys.exit(130)
    except BrokenPipeError:  # `ctseg … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
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
