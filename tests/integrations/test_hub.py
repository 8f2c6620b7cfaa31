"""A run is shared and loaded again; nothing but plain data goes up or comes down, and nothing of it is
executed."""
import base64
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.toys import tiny, toy

import ctseg
from ctseg.core.errors import InputError
from ctseg.core.json_files import read_json, write_json
from ctseg.integrations.hub import push_to_hub, shared_files
from ctseg.recipes.fit import fit
from ctseg.runs.folder import Run
from ctseg.runs.source import SHARED, WEIGHTS, find_run, hub_name

hub = pytest.importorskip("huggingface_hub")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fit(
        toy(),
        tiny("masked", "epochs=1"),
        tmp_path_factory.mktemp("shared")/"first",
        device="cpu",
        progress=False,
    )


@pytest.fixture
def cache(tmp_path, monkeypatch):
    "An empty cache of the hub, and no network."
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path/"cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path/"cache"


def cached(cache: Path, run: Run, repo="ada/liver", version="1"*40, leave_out=(), ref="main") -> Path:
    """Put the files of a run into the cache as huggingface_hub lays them out: links to blobs; the folder of
    the version."""
    place = cache/f"models--{repo.replace('/', '--')}"
    snapshot = place/"snapshots"/version
    for i, name in enumerate(SHARED):
        if name in leave_out or not (run/name).exists(): continue
        blob = place/"blobs"/f"{version}{i}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(run/name, blob)
        (snapshot/name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot/name).symlink_to(blob)
    (place/"refs").mkdir(exist_ok=True)
    (place/"refs"/ref).write_text(version)
    return snapshot


def refused(name, *words):
    with pytest.raises(InputError) as e: ctseg.load(name, "cpu")
    text = str(e.value)
    assert "\n" not in text and all(word in text for word in words), text


@pytest.mark.parametrize("name", ["hf://ada/liver", "ada/liver", "hf://ada/liver@main", f"hf://ada/liver@{'1'*40}", Path("hf://ada/liver")])
def test_loaded_from_the_cache(run, cache, name):
    cached(cache, run)
    images = toy().images[:3]
    assert np.array_equal(
        ctseg.load(name, "cpu").predict(images), ctseg.load(run.folder, "cpu").predict(images)
    )


def test_a_revision_is_the_one_asked_for(run, cache, tmp_path):
    other = fit(
        toy(seed=3), tiny("masked", "epochs=1"), tmp_path/"other", seed=3, device="cpu", progress=False
    )
    new, old = cached(cache, run), cached(cache, other, version="2"*40, ref="v1")
    assert find_run("hf://ada/liver").folder == new and find_run("hf://ada/liver@v1").folder == old
    refused("hf://ada/liver@v7", "v7")


def test_a_folder_comes_before_the_hub(run, cache):
    cached(cache, run)
    shutil.copytree(run.folder, "ada/liver")
    assert find_run("ada/liver").folder == Path("ada/liver") and find_run("hf://ada/liver").folder != Path(
        "ada/liver"
    )
    assert hub_name("ada/spleen") is None  # there is a folder `ada`: a slip of the pen is asked of nobody
    refused("ada/spleen", "no run here")


@pytest.mark.parametrize("name", ["hf://", "hf://ada", "hf://ada/liver/more", "hf://../../etc", "hf://ada/..", "hf://ada/liver@", "hf://ada/liver@../../x",
                                  "hf://ada/liver@/etc", "hf://.ada/liver", "hf://ada/li--ver", "hf://ada/liver?x", "hf://ada\\liver/x", "hf:///ada/liver"])
def test_names_that_are_none(cache, name):
    refused(name, "not the name of a repository")


def test_what_is_missing_is_told(run, cache):
    refused("hf://ada/nothing", "cannot be reached")
    refused("nobody/nothing", "no folder of this name", "cannot be reached")
    cached(cache, run, "ada/weightless", leave_out=[WEIGHTS])
    refused("hf://ada/weightless", WEIGHTS)
    cached(cache, run, "ada/other", leave_out=["recipe.json"])
    refused("hf://ada/other", "recipe.json")


def changed(cache, run, change, repo="ada/changed"):
    "A repository whose recipe.json is changed."
    path = cached(cache, run, repo)/"recipe.json"
    spec = read_json(path)
    change(spec)
    write_json(spec, path.resolve())
    return f"hf://{repo}"


def test_code_is_neither_fetched_nor_executed(run, cache, tmp_path):
    planted = tmp_path/"evil.py"
    planted.write_text(f"open({str(tmp_path/'ran')!r}, 'w')")
    for plugin in (
        {"name": "evil.py", "sha256": "0"*64},
        {"name": str(planted), "sha256": "0"*64},
        str(planted),
        {"path": str(planted)},
    ):
        refused(
            changed(cache, run, lambda spec: spec.update(plugins=[plugin]), f"ada/p{abs(hash(str(plugin)))}"),
            "plugin",
        )
    refused(
        changed(
            cache, run, lambda spec: spec["recipe"]["model"].update(name="unet:hf-hub:evil/net"), "ada/timm"
        ),
        "network",
    )
    refused(changed(cache, run, lambda spec: spec.update(recipe=[1]), "ada/list"), "not a run of ctseg")
    assert not (tmp_path/"ran").exists()


def test_a_pickle_is_no_weights(run, cache, tmp_path):
    import pickle
    snapshot = cached(cache, run, "ada/pickled")
    (snapshot/WEIGHTS).resolve().write_bytes(pickle.dumps({"x": 1}))
    refused("hf://ada/pickled", "damaged")


def test_a_link_out_of_the_cache_is_refused(run, cache, tmp_path):
    snapshot = cached(cache, run, "ada/link")
    secret = tmp_path/"metrics.json"
    secret.write_text("{}")
    (snapshot/"metrics.json").unlink()
    (snapshot/"metrics.json").symlink_to(secret)
    refused("hf://ada/link", "link")


def test_without_the_package(run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    refused("hf://ada/liver", "ctseg[hub]")
    with pytest.raises(InputError, match="ctseg\\[hub\\]"): push_to_hub(run, "ada/liver")


def test_what_goes_up(run, tmp_path):
    home = Run(shutil.copytree(run.folder, tmp_path/"home"))
    for name in (
        "report.html",
        "pseudo_labels.csv",
        "pseudo_labels.npz",
        "curves.png",
        "notes.txt",
        "model.pt",
    ):
        (home/name).write_text("patient 7")
    spec = read_json(home/"recipe.json")
    spec["recipe"]["model"]["weights"] = "/home/ada/secret/first.safetensors"
    write_json(spec, home/"recipe.json")
    files = shared_files(home)
    assert files.keys() <= {*SHARED, "README.md"} and {"recipe.json", WEIGHTS, "README.md"} <= files.keys()
    assert all(name.endswith((".json", ".csv", ".md", ".safetensors")) for name in files)
    assert b"first.safetensors" in files["recipe.json"] and b"secret" not in files["recipe.json"]
    (home/"history.csv").unlink()
    (home/"history.csv").symlink_to(run/"history.csv")
    with pytest.raises(InputError, match="link"): shared_files(home)


def test_what_cannot_be_shared(run, tmp_path):
    api = SimpleNamespace()  # must not be asked
    for name in ("ada", "ada/liver@v1", "../x/y", "hf://ada"):
        with pytest.raises(InputError, match="expected"): push_to_hub(run, name, api=api)
    with pytest.raises(InputError, match="no run here"): push_to_hub(tmp_path, "ada/liver", api=api)
    for name, word in (("metrics.json", "not finished"), (WEIGHTS, "no such weights")):
        part = Run(shutil.copytree(run.folder, tmp_path/word.replace(" ", "")))
        (part/name).unlink()
        with pytest.raises(InputError, match=word): push_to_hub(part, "ada/liver", api=api)


class FakeHub(BaseHTTPRequestHandler):
    "As much of the hub's interface as sharing and loading need; what it holds is in `server.files`."
    def answer(self, value, status=200, headers=()):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for key, text in (("Content-Length", str(len(body))), *headers): self.send_header(key, text)
        self.end_headers()
        if self.command != "HEAD": self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.status != 200: return self.answer({"error": "no"}, self.server.status)
        if self.path == "/api/repos/create":
            self.server.private = json.loads(body).get("private", json.loads(body).get("visibility"))
            return self.answer({"url": "https://huggingface.co/ada/liver"})
        if "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            return self.answer(
                {
                    "files": [
                        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked
                    ]
                }
            )
        if self.path == "/api/validate-yaml": return self.answer({"errors": [], "warnings": []})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self.answer(
            {
                "success": True,
                "commitOid": "3"*40,
                "commitUrl": "https://huggingface.co/ada/liver/commit/" + "3"*40,
            }
        )

    def do_GET(self):
        files, name = self.server.files, self.path.partition("/resolve/" + "3"*40 + "/")[2]
        if self.path.startswith("/api/models/ada/liver"):
            return self.answer(
                {
                    "id": "ada/liver",
                    "sha": "3"*40,
                    "siblings": [{"rfilename": f} for f in files],
                    "tags": [],
                    "private": True,
                }
            )
        if name not in files:
            return self.answer({"error": "missing"}, 404, [("X-Error-Code", "RepoNotFound")])
        self.answer(files[name], headers=[("ETag", f'"{abs(hash(name))}"'), ("X-Repo-Commit", "3"*40)])

    do_HEAD = do_GET
    def log_message(self, *_): pass


@pytest.fixture
def endpoint(tmp_path, monkeypatch):
    "A hub on this machine."
    server = HTTPServer(("127.0.0.1", 0), FakeHub)
    server.files, server.private, server.status = {}, None, 200
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path/"cache"))
    yield server, hub.HfApi(endpoint=address, token="hf_stand_in")
    server.shutdown()
    server.server_close()


def test_shared_and_loaded_through_a_hub(run, endpoint):
    server, api = endpoint
    assert "commit" in push_to_hub(run, "hf://ada/liver", api=api)
    assert server.private in (True, "private")
    assert (
        server.files.keys() <= {*SHARED, "README.md", ".gitattributes"}
        and server.files["README.md"] == server.files["model_card.md"]
    )
    server.files["../../escaped.json"] = server.files["evil.py"] = server.files["optimiser.pt"] = b"x"
    images = toy().images[:3]
    assert np.array_equal(
        ctseg.load("hf://ada/liver", "cpu").predict(images), ctseg.load(run.folder, "cpu").predict(images)
    )
    fetched = [p for p in find_run("hf://ada/liver").folder.rglob("*") if not p.is_dir()]
    assert {p.suffix for p in fetched} <= {".json", ".csv", ".md", ".safetensors"}
    refused("hf://ada/nothing", "no such repository")
    del server.files[WEIGHTS]
    refused("hf://ada/liver", "no weights")
    del server.files["recipe.json"]
    refused("hf://ada/liver", "not a run of ctseg")


@pytest.mark.parametrize("status, word", [(401, "log in"), (403, "log in"), (500, "500")])
def test_a_hub_that_refuses(run, endpoint, status, word, monkeypatch):
    server, api = endpoint
    server.status = status
    with pytest.raises(InputError, match=word) as e: push_to_hub(run, "ada/liver", api=api)
    assert "\n" not in str(e.value)
