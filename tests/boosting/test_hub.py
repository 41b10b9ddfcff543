"""Boosters to bundles and to a hub and back; the hub is a server of this test on localhost."""

import base64
import hashlib
import http.server
import json
import re
import threading

import jax.numpy as jnp
import numpy as np
import pytest

from fmboost_jax.boosting.booster import Booster
from fmboost_jax.errors import InputError
from fmboost_jax.models.parameters import merge

OID = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's protocol as an upload and a download of small files need."""

    files: dict[str, bytes]
    tags: list[str]
    requests: list[str]

    def _json(self, value, status: int = 200) -> None:
        self._bytes(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    def _bytes(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _siblings(self) -> list[dict]:
        return [
            {"type": "file", "path": name, "rfilename": name, "size": len(content), "oid": _sha1(content)}
            for name, content in self.files.items()
        ]

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length")
        body = self.rfile.read(int(length)) if length else self._chunks()
        self.requests.append(self.path)
        if self.path == "/api/repos/create":
            self._json({"url": f"{self.server.address}/somebody/booster", "name": "somebody/booster", "id": "1"})
        elif self.path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            self._json({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            address = f"{self.server.address}/somebody/booster/commit/{OID}"
            self._json({"success": True, "commitOid": OID, "commitUrl": address, "hookOutput": ""})
        elif "/tag/" in self.path:
            self.tags.append(json.loads(body)["tag"])
            self._json({})
        else:
            self._json({"error": f"unexpected {self.path}"}, 404)

    def _chunks(self) -> bytes:
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if match := re.fullmatch(r"/somebody/booster/resolve/[^/]+/([^?]+)(\?.*)?", self.path):
            content = self.files.get(match[1])
            if content is None:
                self._json({"error": "Entry not found"}, 404)
                return
            self._bytes(content, headers={"ETag": f'"{_sha1(content)}"', "X-Repo-Commit": OID})
        elif "/tree/" in self.path:
            self._json(self._siblings())
        elif self.path.startswith("/api/models/somebody/booster"):
            self._json({"id": "somebody/booster", "sha": OID, "siblings": self._siblings(), "tags": []})
        else:
            self._json({"error": "Repository not found"}, 404)

    def log_message(self, *_) -> None:
        pass


def _sha1(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub.constants", reason="the hub's client is not installed")
    handler = type("FreshHub", (Hub,), {"files": {}, "tags": [], "requests": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        server.address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield handler
    server.shutdown()


@pytest.fixture(scope="module")
def booster():
    return Booster.from_pretrained("photo-x2")


def test_save_and_load(booster, tmp_path):
    booster.save_pretrained(tmp_path / "bundle")
    again = Booster.from_pretrained(tmp_path / "bundle")
    assert again.fingerprint == booster.fingerprint
    assert again.config == booster.config
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: fmboost_jax\npipeline_tag: image-to-image\ntags:")
    with pytest.raises(InputError, match="exists"):
        booster.save_pretrained(tmp_path / "bundle")
    with pytest.raises(InputError, match="dtype 'int8' is unknown"):
        booster.save_pretrained(tmp_path / "other", dtype="int8")


def test_a_booster_that_was_not_loaded_is_not_saved(booster, tmp_path):
    network = merge(booster.graph, booster.parameters)
    made = Booster(network, booster.first_stage, booster.coupling, booster.factor)
    with pytest.raises(InputError, match="not loaded"):
        made.save_pretrained(tmp_path / "bundle")


def test_push_to_hub_and_from_pretrained_are_inverses(booster, hub):
    address = booster.push_to_hub("somebody/booster", dtype="float16", token="hf_test", tag="v2")
    assert address.endswith(f"/commit/{OID}")
    assert hub.tags == ["v2"]
    assert set(hub.files) == {"README.md", "config.json", "unet.safetensors"}
    again = Booster.from_pretrained("somebody/booster")
    for name, array in booster.parameters.items():
        np.testing.assert_array_equal(again.parameters[name], jnp.asarray(array, jnp.float16).astype(jnp.float32))


def test_a_refused_upload_is_one_line(booster, hub, monkeypatch):
    monkeypatch.setattr(hub, "do_POST", lambda self: self._json({"error": "Invalid username or password."}, 401))
    with pytest.raises(InputError, match=r"the upload to somebody/booster failed: .*401"):
        booster.push_to_hub("somebody/booster", token="hf_test")
