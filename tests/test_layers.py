"""Imports go down only (tsarch, cluster, launch), without cycles; heavy libraries in one place."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest

from tests.helpers import ROOT

FOLDERS = {"tsarch": "tsarch", "cluster": "tsarch.cluster", "launch": "tsarch.launch"}
"""Folder at the top → package. `cluster` and `launch` are links inside `tsarch`, so that an
installed tsarch puts no other names into site-packages."""
FILES = {
    ".".join([package, *path.relative_to(ROOT / folder).with_suffix("").parts]).removesuffix(
        ".__init__"
    ): path
    for folder, package in FOLDERS.items()
    for path in sorted((ROOT / folder).rglob("*.py"))
}
LAYERS = [
    [
        "tsarch.redaction",
        "tsarch.errors",
        "tsarch.config",
        "tsarch.config_loading",
        "tsarch.config_changes",
        "tsarch.overrides",
        "tsarch.yaml_text",
        "tsarch.task_names",
        "tsarch.topology",
        "tsarch.clock",
        "tsarch.timings",
        "tsarch.host_memory",
        "tsarch.launchers",
    ],
    ["tsarch.schedule"],
    ["tsarch.records", "tsarch.written", "tsarch.profiled", "tsarch.seeding"],
    ["tsarch.checkpoint"],
    ["tsarch.data", "tsarch.models", "tsarch.losses", "tsarch.parallel"],
    ["tsarch.tasks"],
    ["tsarch.inputs"],
    ["tsarch.marking"],
    ["tsarch.pair"],
    ["tsarch.architecture", "tsarch.specs", "tsarch.config_specs", "tsarch.blueprint"],
    ["tsarch.stage"],
    ["tsarch.prepare", "tsarch.taught", "tsarch.feeds", "tsarch.model_folder"],
    ["tsarch.telling"],
    ["tsarch.rank"],
    ["tsarch.planning"],
    ["tsarch.run"],
    ["tsarch.prediction"],
    ["tsarch.augmentation"],
    ["tsarch.serving"],
    ["tsarch.export"],
    ["tsarch.refit"],
    ["tsarch.cluster"],
    ["tsarch.launch"],
    ["tsarch.__main__"],
]


def imports_of(name: str, at_top_only: bool = False) -> set[str]:
    """Modules that a file imports (at its top only, or anywhere outside TYPE_CHECKING)."""
    tree = ast.parse(FILES[name].read_text())
    skipped = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    nodes = tree.body if at_top_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & set(FILES)) or {node.module}
    return found


def layer(name: str) -> int:
    return next(
        i for i, own in enumerate(LAYERS) if any(name == p or name.startswith(p + ".") for p in own)
    )


@pytest.mark.parametrize("name", FILES)
def test_imports_go_down(name):
    if name == "tsarch":
        return
    for other in imports_of(name):
        if other.partition(".")[0] == "tsarch" and other != "tsarch":
            assert layer(other) <= layer(name), f"{name} imports {other}"


def test_no_cycles():
    graph = {name: imports_of(name) & set(FILES) - {name} for name in FILES if name != "tsarch"}
    assert set(TopologicalSorter(graph).static_order()) == set(graph)  # raises on a cycle


@pytest.mark.parametrize("name", FILES)
def test_files_and_functions_are_short(name):
    text = FILES[name].read_text()
    assert text.count("\n") <= 400, "two jobs?"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 50, node.name


def test_a_pair_only_computes():
    """Nothing of training is in its room: no engine, optimizer, feed, link or loss."""
    machinery = ("tsarch.stage", "tsarch.losses", "tsarch.data.feed", "tsarch.parallel.link")
    machinery += ("tsarch.parallel.tied_embedding", "tsarch.parallel.groups", "torch.optim")
    for name in FILES:
        if name.startswith("tsarch.pair."):
            assert not [m for m in imports_of(name) if m.startswith(machinery)], name


@pytest.mark.parametrize(
    ("library", "places"),
    [
        ("ray", ("tsarch.cluster.",)),
        ("deepspeed", ("tsarch.stage.deepspeed_", "tsarch.stage.zero3")),
        ("torch.distributed._dist2", ("tsarch.parallel.groups",)),
        ("matplotlib", ("tsarch.telling.drawing",)),
        ("fastapi", ("tsarch.serving.", "tsarch.cluster.serving")),
        ("starlette", ("tsarch.serving.", "tsarch.cluster.serving")),
        ("uvicorn", ("tsarch.serving.",)),
        ("mlflow", ("tsarch.telling.mlflow_run",)),
        ("wandb", ("tsarch.telling.wandb_run",)),
        ("prometheus_client", ("tsarch.serving.", "tsarch.cluster.serving")),
    ],
)
def test_heavy_libraries_stay_in_their_place(library, places):
    for name, path in FILES.items():
        if name.startswith(places) or name in places:
            continue
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
            assert not [n for n in names if n == library or n.startswith(library + ".")], name


@pytest.mark.parametrize(
    "module",
    [
        "tsarch.schedule.plan",
        "tsarch.topology",
        "tsarch.blueprint",
        "tsarch.planning.balance",
        "tsarch.launch.cli",
    ],
)
def test_the_light_parts_import_no_torch_and_no_ray(module):
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'ray'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_what_kind_a_task_is_needs_no_torch():
    code = (
        "import sys; from tsarch.task_names import TASKS;"
        "from tsarch.tasks.base import is_answering;"
        "from tsarch.tasks.registry import is_generative, make_task;"
        "assert all(is_generative(n) != is_answering(make_task(n, ())) for n in TASKS);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.slow
def test_the_driver_needs_no_deepspeed_and_no_matplotlib_before_the_report():
    code = (
        "import sys, tsarch.cluster.ray_crew, tsarch.run.loop;"
        "sys.exit(bool({'deepspeed', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
