"JSON holds only numbers that JSON has."
import json

import numpy as np
import pytest

from ctseg.core import json_files
from ctseg.core.errors import InputError


def test_json_has_no_infinity(tmp_path):
    json_files.write_json({"a": [float("inf"), -np.inf, np.float64("nan"), 1.5]}, tmp_path/"a.json")
    assert json.loads((tmp_path/"a.json").read_text(), parse_constant=lambda c: pytest.fail(c)) == {
        "a": [None, None, None, 1.5]
    }


@pytest.mark.parametrize("text, words", [
    ("["*50_000 + "]"*50_000, "nested too deeply"),
    ('{"a": ' + "7"*5000 + "}", "too many digits"),
    ('{"a": 1,\n oops}', "line 2: not valid JSON"),
    (b'{"a": "\xff"}', "not UTF-8 text, expected a JSON file; save it in UTF-8"),
    ('{"a": 1}'.encode("utf-16"), "text in UTF-16"), ("", "empty"), ("<html>403</html>", "a web page"), ("<<<<<<< HEAD\n{}", "git"),
    ('{"digits": 1, "digits": 2}', "not valid JSON .*digits"),
    ("{'a': 1}", "names and texts stand in double quotes"), ('{"a": 1,}', "no comma after the last item"),
])
def test_json_that_cannot_be_read(tmp_path, text, words):
    path = tmp_path/"a.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=words) as e: json_files.read_json(path)
    assert str(path) in str(e.value) and "\n" not in str(e.value)


def test_json_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path/"a.json"
    path.write_bytes(b'\xef\xbb\xbf{"name": "Lunge \xc3\xbc"}')
    assert json_files.read_json(path) == {"name": "Lunge ü"}
