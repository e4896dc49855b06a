"""What is kept of data outside the run folder: for its user alone, said, and none if so wished."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import tiny_blueprint, tiny_config
from tsarch.blueprint import resolve
from tsarch.data.cache import cache_note, cache_root
from tsarch.errors import UserError
from tsarch.prepare import prepare_data


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home folder without a cache; temporary files are in it too."""
    folder = tmp_path / "home"
    (folder / "tmp").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setattr("tempfile.tempdir", str(folder / "tmp"))
    return folder


def test_the_cache_is_made_for_its_user_alone(home, tmp_path):
    assert cache_root(None) == home / ".cache" / "tsarch"
    assert cache_root(None).stat().st_mode & 0o777 == 0o700
    cache_root(None).chmod(0o755)  # as older versions left it
    assert cache_root(None).stat().st_mode & 0o777 == 0o700
    named = tmp_path / "deep" / "cache"
    assert cache_root(str(named)).stat().st_mode & 0o777 == 0o700
    named.chmod(0o750)  # a group's own choice
    assert cache_root(str(named)).stat().st_mode & 0o777 == 0o750
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="can't be made"):
        cache_root(str(tmp_path / "file" / "cache"))


def test_where_it_is_and_how_to_do_without_is_said(tmp_path):
    data = tiny_config(tmp_path, data={"cache_folder": None}).data
    assert cache_note(data) == "kept in ~/.cache/tsarch; data.cache: false keeps nothing"
    data = tiny_config(tmp_path, data={"cache_folder": "/fast"}).data
    assert cache_note(data).startswith("kept in /fast;")
    data = tiny_config(tmp_path, data={"cache": False}).data
    assert cache_note(data) == "nothing of it is kept"


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "hub"])
def test_nothing_is_kept_if_so_wished(home, tmp_path, kind):
    blueprint = tiny_blueprint(tmp_path)
    data = {"cache": False, "cache_folder": None}
    kept = prepare_data(blueprint)
    assert files_in(tmp_path / "cache")
    if kind != "jsonl":
        import pandas

        (tmp_path / "tables").mkdir()
        for split in ("train", "validation", "test"):
            rows = pandas.read_json(tmp_path / f"{split}.jsonl", lines=True, dtype=False)
            rows.to_parquet(tmp_path / "tables" / f"{split}.parquet")
            data[split] = str(tmp_path / "tables" / f"{split}.parquet")
    if kind == "hub":
        data |= {"hub": str(tmp_path / "tables"), "train": None, "validation": None, "test": None}
    again = prepare_data(resolve(tiny_config(tmp_path, data=data)))
    assert again.digests == kept.digests
    assert files_in(home) == []
