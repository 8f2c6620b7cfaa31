"The `ctseg` command. Written by hand; the commands are exported from the notebooks of this folder."
from ctseg.cli.main import app, main

__all__ = ["app", "main"]
