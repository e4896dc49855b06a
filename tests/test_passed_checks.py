"""A check that has passed isn't made again, unless anything that it depends on is another."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import QUICKSTART_MODEL, tiny_blueprint
from tsarch.data.tokenizer import resolve_model_path
from tsarch.errors import UserError
from tsarch.planning import passed
from tsarch.planning.passed import PassedChecks


@pytest.fixture
def made() -> list[str]:
    """What was checked."""
    return []


@pytest.fixture
def tokenizer(tmp_path) -> str:
    """A tokenizer's own folder, of which files can be changed."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for path in Path(resolve_model_path(QUICKSTART_MODEL)).glob("*.json"):
        shutil.copy(path, folder)
    return str(folder)


def run(made: list[str], tmp_path: Path, sections: dict[str, Any], *data: str) -> list[str]:
    """Remarks of a check of a tiny run."""

    def check() -> list[str]:
        made.append("check")
        return ["a remark"]

    return PassedChecks(tiny_blueprint(tmp_path, **sections)).run("check", check, data)


def test_what_has_passed_is_remembered_with_its_remarks(made, tmp_path, tokenizer):
    own = {"data": {"tokenizer": tokenizer}}
    for name in ("a", "b"):  # the run's name changes nothing
        assert run(made, tmp_path, {**own, "run": {"name": name}}) == ["a remark"]
    assert made == ["check"]


def _another_key(folder: Path, _: Any) -> dict[str, Any]:
    return {"teacher": {"max_tokens": 64}}


def _another_byte(folder: Path, _: Any) -> dict[str, Any]:
    file = folder / "tokenizer" / "tokenizer_config.json"
    file.write_bytes(file.read_bytes() + b"\n")
    return {}


def _another_version(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(passed, "_surroundings", lambda: "another torch")
    return {}


def _other_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(passed, "code_digest", lambda: "a line more")
    return {}


@pytest.mark.parametrize("change", [_another_key, _another_byte, _another_version, _other_code])
def test_it_is_made_again_with_another(
    change: Callable[[Path, Any], dict[str, Any]], made, tmp_path, tokenizer, monkeypatch
):
    own = {"data": {"tokenizer": tokenizer}}
    run(made, tmp_path, own)
    run(made, tmp_path, {**own, **change(tmp_path, monkeypatch)})
    assert made == ["check", "check"]


def test_it_is_made_again_with_other_data(made, tmp_path):
    for data in (("a", "b"), ("b", "a"), ("a", "b")):
        run(made, tmp_path, {}, *data)
    assert made == ["check", "check"]


def test_nothing_is_kept_where_nothing_may_be(made, tmp_path):
    for _ in range(2):
        run(made, tmp_path, {"data": {"cache": False}})
    assert made == ["check", "check"]


def test_what_fails_or_leaves_something_out_is_made_each_time(made, tmp_path):
    checks = PassedChecks(tiny_blueprint(tmp_path))

    def fail() -> list[str]:
        made.append("fail")
        raise UserError.single("here", "is wrong.")

    def leave_out() -> list[str]:
        made.append("leave out")
        return ["half of it"]

    for _ in range(2):
        with pytest.raises(UserError, match="is wrong"):
            checks.run("fail", fail)
        checks.run("some", leave_out, may_leave_out=True)
    assert made == ["fail", "leave out"] * 2


def test_models_of_the_hub_are_checked_each_time(made, tmp_path, monkeypatch):
    monkeypatch.setattr(passed, "resolve_model_path", lambda name: name)
    for _ in range(2):
        run(made, tmp_path, {"data": {"tokenizer": "someone/model"}})
    assert made == ["check", "check"]


def test_a_damaged_file_is_as_none(made, tmp_path):
    run(made, tmp_path, {})
    (file,) = (tmp_path / "cache" / "checks").iterdir()
    file.write_text("{", encoding="utf-8")
    run(made, tmp_path, {})
    assert made == ["check", "check"]
