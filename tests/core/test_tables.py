"Files that are endless, or unpack to gigabytes, are told in a second and in little memory."
import gzip
import io
import os
import time
import tracemalloc

import pytest

from ctseg.core.atomic import atomic_path
from ctseg.core.errors import InputError, did_you_mean, some_of
from ctseg.core.json_files import read_json
from ctseg.core.tables import MAX_LINES, MAX_WIDTH, counted_lines, refuse_padding, table_cells, table_text
from ctseg.data.mask_rows import count_rows, read_image_names


def told(call, *parts, seconds=10., traced=True):
    "The one line that `call` ends with, within a time that a busy machine has too, and a memory if that is `traced`."
    begin, peak = time.process_time(), 0
    if traced: tracemalloc.start()
    try:
        with pytest.raises(InputError) as e: call()
        if traced: peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - begin < seconds and peak < 100e6
    text = str(e.value)
    assert all(part in text for part in parts) and "\n" not in text, text
    return text


@pytest.mark.parametrize("size", [100, 200 << 20, 3 << 30, 1 << 42])
def test_zeros_to_the_end(tmp_path, size):
    path = tmp_path/"history.csv"
    path.write_text("epoch,loss\n1,.5\n")
    os.truncate(path, size)
    told(lambda: table_text(path, "copy it again"), "history.csv")


@pytest.mark.parametrize("content", [b"a,"*MAX_WIDTH, b"\n"*(MAX_LINES + 2), b"\r"*(MAX_LINES + 2), b"a\xff\n", b"a\0\n"])
def test_what_is_no_small_table(tmp_path, content):
    (tmp_path/"a.csv").write_bytes(content)
    told(lambda: table_text(tmp_path/"a.csv", "write it again"), "a.csv", "write it again")


def test_a_table_is_read_as_it_is(tmp_path):
    (tmp_path/"a.csv").write_bytes("\ufeffä,b\r\n1,2\n".encode())
    assert table_text(tmp_path/"a.csv") == "ä,b\r\n1,2\n"


@pytest.mark.parametrize("block", [b"a"*(1 << 20), b"\n"*(1 << 20)])
def test_lines_without_number_or_end(tmp_path, block):
    path = tmp_path/"codes.csv.gz"
    member = gzip.compress(b"x\n") + gzip.compress(block, 1)*30
    path.write_bytes(member)
    with gzip.open(path, "rt") as text: told(lambda: sum(1 for _ in counted_lines(text, path)), "codes.csv.gz", traced=False)


@pytest.mark.parametrize("size", [3 << 30, 1 << 42])
def test_a_packed_file_padded_with_zeros(tmp_path, size):
    path = tmp_path/"y.csv.gz"
    path.write_bytes(gzip.compress(b",0.png\nPixel 0,0\n"))
    refuse_padding(path)
    os.truncate(path, size)
    told(lambda: read_image_names(path), "y.csv.gz", "copy it again")


def test_gigabytes_of_rows_in_a_small_file(tmp_path):
    path = tmp_path/"y.csv.gz"
    path.write_bytes(gzip.compress(b",0.png\n") + gzip.compress(b"\n"*(1 << 22), 1)*1000)
    told(lambda: count_rows(path), "empty lines")
    path.write_bytes(gzip.compress(b",0.png\n") + gzip.compress(b"0\n"*(1 << 21), 1)*1000)
    told(lambda: count_rows(path), "rows")


@pytest.mark.parametrize("text", ["[" + "[],"*(4 << 20) + "[]]", "[" + '{"":0},'*(4 << 20) + "0]", "[" + "1,"*(20 << 20) + "1]"])
def test_json_with_more_than_memory_has_room_for(tmp_path, text):
    (tmp_path/"a.json").write_text(text)
    told(lambda: read_json(tmp_path/"a.json"), "a.json")


def test_a_key_twice_among_many(tmp_path):
    (tmp_path/"a.json").write_text("{" + "".join(f'"{i}":0,' for i in range(200_000)) + '"7":1}')
    told(lambda: read_json(tmp_path/"a.json"), "'7' is there twice")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_that_nobody_reads(tmp_path):
    os.mkfifo(tmp_path/"out.json")
    def write():
        with atomic_path(tmp_path/"out.json") as tmp: tmp.write_text("x")
    told(write, "out.json", "reader")


def test_names_in_messages_are_few_and_short():
    names = ["x"*5000, *(f"name {i}" for i in range(3000))]
    for text in (some_of(names), str(did_you_mean("class", "?", names)), str(did_you_mean("class", "y"*9**5, ["a"]))):
        assert len(text) < 700
    assert "3001" in str(did_you_mean("class", "?", names)) and "and 2991 others" in some_of(names)
    assert "liver" in str(did_you_mean("class", "livr", [*names, "liver"]))


def test_a_zero_byte_in_a_line_is_told():
    lines = counted_lines(io.StringIO("image,patient\n0,\0a\n"), "x.csv")
    assert next(lines) == "image,patient\n"
    with pytest.raises(InputError, match="x.csv, line 2: holds a zero byte"): next(lines)


ROWS = {2: ["1", "liver"], 3: ["2", "spleen, left"]}


@pytest.mark.parametrize("text, rows", [
    ('value,name\n1,liver\n2,"spleen, left"\n', ROWS),
    ("value;name\r\n1;liver\r\n2;spleen, left\r\n", ROWS),
    ("value\tname\r1\tliver\r2\tspleen, left", ROWS),
    ('"value"; "name, as in a, b, c"\n1;liver\n2;spleen, left\n', ROWS),
    ("sep=;\nvalue;name\n1;liver\n2;spleen, left\n", {3: ROWS[2], 4: ROWS[3]}),
    ('"sep=|"\r\n\r\nvalue|name\r\n1|liver\r\n2|spleen, left\r\n', {4: ROWS[2], 5: ROWS[3]}),
    ("\n;;\nvalue;name\n\n1;liver\n;\n ; \n2;spleen, left\n;;;;\n", {5: ROWS[2], 8: ROWS[3]}),
    ('value,name\n1,"liver\nor so"\n2,x\n', {2: ["1", "liver\nor so"], 4: ["2", "x"]}),
])
def test_tables_as_spreadsheets_write_them(text, rows):
    header, found = table_cells(io.StringIO(text, newline=""), "names.csv")
    assert header[0] == "value" and header[1].strip('" ').startswith("name") and found == rows


@pytest.mark.parametrize("text, part", [
    ("", "is empty"), ("\n;\n", "is empty"), ("a,b\n\n\n1\n", "line 4: 1 cells"), ('a,b\n1,"x\ny"\n1,2,3\n', "line 4: 3 cells"),
    ('a,b\n1,"x', "not a readable CSV"), ("a,a\n1,2\n", "there twice"), ("sep=;\n", "is empty"),
    ("\n\n", "is empty"), ("sep=;\na;b\n1,2\n", "line 3: 1 cells"),
])
def test_a_message_names_the_line_that_an_editor_shows(text, part):
    with pytest.raises(InputError) as e:
        table_cells(io.StringIO(text, newline=""), "names.csv")
    assert part in str(e.value) and "names.csv" in str(e.value)
