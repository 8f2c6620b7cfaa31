# %% [markdown]
# # JSON
#
# > What is read is what it says, and what is written is whole.
#
# - skip_showdoc: true

# %%
#| default_exp core.json_files

# %%
#| export
import json
import math
import re
import zlib
from collections import Counter
from pathlib import Path

from ctseg.core.atomic import atomic_path
from ctseg.core.errors import InputError
from ctseg.core.filetypes import content_of
from ctseg.core.paths import MAX_TEXT, refuse_special, unread

# %%
#| hide
import tempfile
from pathlib import Path

from fastcore.test import test_eq


# %% [markdown]
# Damaged JSON is named with its line, and written JSON is whole. JSON has no NaN and no infinity, so both become null.

# %%
#| export
def _unique(pairs: list[tuple]) -> dict:
    "A JSON object; `ValueError` if a key is there twice, of which only one would be believed."
    table = dict(pairs)
    if len(table) == len(pairs): return table
    counts = Counter(name for name, _ in pairs)
    twice = counts.most_common(1)[0][0]
    raise ValueError(f"the key {twice[:60]!r} is there twice")

def _finite(text: str) -> float:
    "A number with a point or an exponent; `ValueError` for what is too large, and for NaN and infinity, which JSON does not have."
    number = float(text)
    if math.isfinite(number): return number
    raise ValueError(f"{text[:20]} is no number that JSON can hold")


# %%
#| export
_MOST_VALUES, _MOST_GROUPS = 1 << 24, 3 << 20  # of values, and of lists and objects, in a JSON file

def parse_json(text: str):
    "The content of a JSON text; `ValueError` for what other readers would refuse or take otherwise, and for more values than memory has room for."
    if text.count(",") > _MOST_VALUES:
        raise ValueError(f"more than {_MOST_VALUES} values")
    if text.count("[") + text.count("{") > _MOST_GROUPS:
        raise ValueError(f"more than {_MOST_GROUPS} lists and objects")
    value = json.loads(text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite)
    if re.search(r"\\u[dD][89a-fA-F]", text):  # half of a letter can be written but not printed or stored
        json.dumps(value, ensure_ascii=False).encode()
    return value


# %%
test_eq(parse_json('{"a": [1, 2.5, "\\ud83d\\ude00"]}'), {"a": [1, 2.5, "😀"]})
for text in ('{"a": 1, "a": 2}', "[NaN]", "[1e400]", '["\\ud800"]', "[" + "9"*5000 + "]"):
    try: parse_json(text)
    except ValueError as e: print(str(e)[:60])


# %%
#| export
def read_json(path: str | Path):
    "The content of a JSON file; an `InputError` names the file, and the line where it is damaged."
    path = Path(path)
    refuse_special(path, MAX_TEXT)
    try:
        data = path.read_bytes()
        other = content_of(path)
        if other: raise ValueError(other)
        if b"\0" in data: raise ValueError("it holds zero bytes")
        return parse_json(data.decode("utf-8-sig"))  # some editors begin with a byte-order mark
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder, expected a JSON file") from None
    except OSError as e:
        raise unread(path, e) from None
    except UnicodeEncodeError:
        raise InputError(f"{path}: holds half a letter") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text, expected a JSON file; save it in UTF-8") from None
    except json.JSONDecodeError as e:
        remedy = "names and texts stand in double quotes, and no comma after the last item"
        raise InputError(f"{path}, line {e.lineno}: not valid JSON ({e.msg}); {remedy}") from None
    except RecursionError:
        raise InputError(f"{path}: nested too deeply, expected a JSON file of a few levels") from None
    except ValueError as e:  # Python refuses to convert thousands of digits, in many words
        why = "holds a number with too many digits" if "max_str_digits" in str(e) else f"not valid JSON ({e})"
        raise InputError(f"{path}: {why}") from None


# %%
with tempfile.TemporaryDirectory() as d:
    path = Path(d)/"a.json"
    path.write_text('{"1": "liver",\n oops}')
    try: read_json(path)
    except InputError as e: print(str(e).replace(d, "…"))


# %%
#| export
def finite_only(value):
    "`value` with every number in its lists and dictionaries that is NaN or infinite replaced by None."
    if isinstance(value, dict):
        return {k: finite_only(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_only(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# %%
test_eq(finite_only({"loss": (float("nan"), .5)}), {"loss": [None, .5]})


# %%
#| export
def write_json(value, path: str | Path, indent: int | None = 1) -> None:
    "Write a value as JSON, whole or not at all; numbers that are NaN or infinite become null."
    text = json.dumps(finite_only(value), indent=indent, allow_nan=False)
    with atomic_path(path) as tmp:
        tmp.write_text(text + "\n", encoding="utf-8")


# %%
with tempfile.TemporaryDirectory() as d:
    path = Path(d)/"a.json"
    write_json({"loss": [float("nan"), float("inf"), .5]}, path)
    test_eq(read_json(path), {"loss": [None, None, .5]})
    print(path.read_text())


# %% [markdown]
# A checksum of what a JSON file says, not of how it is laid out: an editor may indent it anew.

# %%
#| export
def json_checksum(value) -> str:
    "A CRC-32 of a value as JSON, in eight hexadecimal digits, whatever the order of its names."
    content = json.dumps(finite_only(value), sort_keys=True)
    return f"{zlib.crc32(content.encode()):08x}"


# %%
test_eq(json_checksum({"a": 1, "b": (2,)}), json_checksum({"b": [2], "a": 1}))
json_checksum({"a": 1}), json_checksum({"a": 1.5})
