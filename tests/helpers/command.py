"The command line in this process, and in one of its own."
import contextlib
import io
import os
import sys

import pytest

from ctseg.cli import main

from .processes import elsewhere


def ctseg(*args):
    "The command in this process: (status, standard output, standard error without progress bars)."
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["ctseg", *map(str, args)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(
            SystemExit
        ) as stop:
            main()
    finally: sys.argv = argv
    return stop.value.code, out.getvalue(), err.getvalue()


def ctseg_alone(folder, *args):
    "The same in a process of its own, which has registered nothing and has loaded no plugin, and in a folder."
    with elsewhere() as call:
        call(os.chdir, folder)
        return call(ctseg, *args)
