"The command line in this process."
import contextlib
import io
import sys

import pytest

from ctseg.cli import main


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
