"""README and docs/: every command is run or says why not, and all that is named is there."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from tests.helpers import ROOT, tiny_raw
from tsarch.config import Config, Section
from tsarch.config_loading import columns_of
from tsarch.launch.cli import app, main
from tsarch.task_names import TASKS

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES = {"console", "text", "yaml", "json", "python"}
"""Of blocks. Commands stand in `console` alone."""
FENCE = re.compile(
    r"(?P<before>[^\n]*\n)(?P<indent> *)```(?P<language>[^\n]*)\n(?P<text>.*?)```", re.S
)
NOT_RUN = re.compile(r"<!-- not run: .{10,} -->")
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
FOLDERS = ("tsarch", "cluster", "launch", "configs", "tests", "benchmarks", "docs")
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Block:
    """A block of commands."""

    page: str
    commands: tuple[str, ...]
    is_run: bool


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[Block]:
    found = []
    for match in FENCE.finditer(page.read_text()):
        if match["language"] == "console":
            lines = re.sub(r"\\\n\s*", "", match["text"]).splitlines()
            commands = tuple(line.strip()[2:] for line in lines if line.strip().startswith("$ "))
            is_run = NOT_RUN.fullmatch(match["before"].strip()) is None
            found.append(Block(name_of(page), commands, is_run))
    return found


def commands_of(pages: list[Path]) -> list[str]:
    """All commands: those of blocks, and those in the text."""
    in_blocks = [c for page in pages for block in blocks(page) for c in block.commands]
    in_text = [
        " ".join(code.split())
        for page in pages
        for code in re.findall(r"`([^`]+)`", FENCE.sub("", page.read_text()))
        if code.startswith(("make ", "tsarch ", "python -m "))
    ]
    return in_blocks + in_text


def keys(section: type[Section], prefix: str = "") -> set[str]:
    """Every key of the config, dotted."""
    found = set()
    for name, field in section.model_fields.items():
        found.add(f"{prefix}{name}")
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, Section):
                found |= keys(kind, f"{prefix}{name}.")
    return found


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has what the commands name, small: a config, data of one's own, a run that was
    ended before its summary."""
    folder = tmp_path_factory.mktemp("project")
    raw = tiny_raw(folder)
    del raw["run"]["folder"]
    raw["run"]["name"] = "quickstart"
    raw["schedule"] |= {"max_steps": 2}
    raw["evaluation"] = {**raw.get("evaluation", {}), "before": False}
    raw["topology"] |= {"runner": "local"}
    for name in ("configs", "data"):
        (folder / name).mkdir()
    for split, own in (("train", "train"), ("validation", "dev"), ("test", "test")):
        (folder / "data" / f"{own}.jsonl").write_bytes(Path(raw["data"][split]).read_bytes())
    (folder / "configs" / "quickstart.yaml").write_text(yaml.safe_dump(raw))
    with pytest.MonkeyPatch.context() as patch:
        run(folder, "tsarch train configs/quickstart.yaml --set run.folder=runs/ended", patch)
    (folder / "runs" / "ended" / "summary.json").unlink()
    return folder


def run(project: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command as it is written; it must end well."""
    arguments = shlex.split(command.replace("/data/", f"{project}/data/"))[1:]
    monkeypatch.chdir(project)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert not ended.value.code, f"{command}: exit status {ended.value.code}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(b.is_run for b in blocks(p))], ids=name_of
)
def test_commands_run_as_they_are_written(page, project, monkeypatch):
    for block in blocks(page):
        for command in block.commands if block.is_run else ():
            run(project, command, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_block_hides_a_command(page):
    for match in FENCE.finditer(page.read_text()):
        assert match["language"] in LANGUAGES, f"{match['language']}: {match['text']}"
        assert match["language"] == "console" or "\n$ " not in f"\n{match['text']}"
    for block in blocks(page):
        assert block.commands
        others = [c for c in block.commands if not c.startswith("tsarch ")]
        assert not block.is_run or not others, f"neither run nor marked as not run: {others}"


def test_commands_that_are_named_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    for command in commands_of(PAGES):
        words = command.split()
        if words[0] == "make" and len(words) > 1 and not words[1].isupper():
            assert words[1] in targets, command
        if words[:2] == ["python", "-m"]:
            module = ROOT.joinpath(*words[2].split("."))
            run = (module.with_suffix(".py"), module / "__main__.py")
            assert any(own.is_file() for own in run), command


def test_calls_of_tsarch_have_arguments_that_it_knows():
    calls = [c for c in commands_of(PAGES) if c.startswith("tsarch ")]
    assert len(calls) > 10
    for call in calls:
        name, *arguments = call.split()[1:]
        if name.isupper() or name.startswith("-"):  # `tsarch COMMAND`
            continue
        assert name in COMMANDS, call
        own = COMMANDS[name].params
        known = {option for each in own for option in (*each.opts, *each.secondary_opts)}
        options = {a.partition("=")[0] for a in arguments if a.startswith("--")}
        assert options <= known | {"--help"}, call


def test_keys_that_are_named_exist():
    known = keys(Config)
    sections = {key for key in known if "." not in key} - {"precision"}
    known |= {f"data.columns.{n}" for task in TASKS for n in columns_of(task).model_fields}
    assert "data.columns.tokens" in known
    for page in PAGES:
        codes = [*CODE.findall(page.read_text()), *re.findall(r"--set ([\w.]+)=", page.read_text())]
        for code in codes:
            key = code.partition(":")[0]
            if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", key) and key.partition(".")[0] in sections:
                assert key in known, f"{name_of(page)}: {key}"


def test_files_that_are_named_exist():
    named = re.compile(rf"(?:{'|'.join(FOLDERS)})/[\w./-]*\w/?")
    for page in PAGES:
        for path in named.findall(page.read_text()):
            assert (ROOT / path).exists(), f"{name_of(page)}: {path}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for path, heading in LINK.findall(FENCE.sub("", page.read_text())):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        if heading:
            assert heading in {slug(line) for line in target.read_text().splitlines()}, heading


def slug(line: str) -> str:
    """The anchor of a heading, for MkDocs and for GitHub."""
    title = re.sub(r"[^\w\s-]", "", line.lstrip("#").strip().lower()) if line[:1] == "#" else ""
    return re.sub(r"\s+", "-", title)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_quoted_messages_stand_in_the_code():
    """Each heading of Troubleshooting that quotes a message has `…` for what differs."""
    said = [text for file in sources() for text in texts_of(file)]
    headings = re.findall(r"^### `(.+)`$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.M)
    assert len(headings) > 30
    for heading in headings:
        parts = [re.escape(part.strip()) for part in heading.split("…")]
        quoted = re.compile(r"\s*…?\s*".join(parts))
        assert any(quoted.search(text) for text in said), heading


def sources() -> list[Path]:
    return [p for f in ("tsarch", "cluster", "launch") for p in (ROOT / f).rglob("*.py")]


def texts_of(path: Path) -> list[str]:
    """All strings of a file, with `…` for what f-strings fill in."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            parts = (v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
            found.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with warnings as errors."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_no_page_asks_another_host(site):
    loads = re.compile(
        r"""<(?:script|link|img|iframe|source)\b[^>]*(?:src|href)=["']?(?:https?:)?//"""
    )
    pages = list(site.rglob("*.html"))
    assert len(pages) >= len(PAGES) - 1
    for page in pages:
        found = [tag for tag in loads.findall(page.read_text()) if "canonical" not in tag]
        assert not found, f"{page}: {found}"


def test_every_key_command_file_and_config_has_its_place(site):
    configuration = (site / "configuration" / "index.html").read_text()
    for key in keys(Config):
        assert f'id="{key}"' in configuration or key.count("."), key
    for path in (ROOT / "configs").glob("*.yaml"):
        assert f"configs/{path.name}" in configuration
    command_line = (site / "command-line" / "index.html").read_text()
    for name, command in COMMANDS.items():
        assert f"tsarch {name}" in command_line
        for option in (option for parameter in command.params for option in parameter.opts):
            assert f"<code>{option}</code>" in command_line or not option.startswith("-"), option
    architecture = (site / "architecture" / "index.html").read_text()
    for path in sources():
        inside = path.relative_to(ROOT)
        if path.name != "__init__.py" and inside.parts[:2] not in LINKED:
            assert f"<code>{inside}</code>" in architecture, inside


LINKED = {("tsarch", "cluster"), ("tsarch", "launch")}
"""The same folders as those at the top."""
