"""`tools/nb.py --check` finds what a notebook prints otherwise than it keeps, and writes nothing."""
import nbformat
import pytest
from nb import changes, check, printed
from nbformat.v4 import new_code_cell, new_notebook, new_output


def stream(text):
    return new_output("stream", text=text)


def result(**data):
    return new_output("display_data", data={kind.replace("_", "/"): value for kind, value in data.items()})


def note_that_prints(*texts):
    return new_notebook(cells=[new_code_cell("", outputs=[stream(text)]) for text in texts])


@pytest.mark.parametrize("output, lines", [
    (stream("a\nb\n"), ["a", "b"]),
    (result(text_plain="<Table>", text_html="<b>1</b>"), ["<b>1</b>"]),
    (result(text_plain="<Figure size 640x480>", image_png="iVBO"), ["(a picture)"]),
])
def test_what_a_cell_prints(output, lines):
    assert printed(new_code_cell("x", outputs=[output])) == lines


def test_changes_name_their_cell():
    old, new = (note_that_prints("same\n", f"0.1\n{last}\n") for last in (0.2, 0.3))
    assert changes(old, old) == []
    assert changes(old, new) == ["cell 1: -0.2", "cell 1: +0.3"]


@pytest.mark.parametrize("source, found", [
    ("print('kept')", []),
    ("print('new')", ["cell 0: -kept", "cell 0: +new"]),
    ("1/0", ["fails: ZeroDivisionError: division by zero"]),
])
def test_a_notebook_is_run_and_left_as_it_was(tmp_path, source, found):
    path = tmp_path/"one.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(source, outputs=[stream("kept\n")])]), path)
    before = path.read_bytes()
    assert check(path) == found
    assert path.read_bytes() == before
