"""A run whose student works at several depths, as one run for each of them.

`RUN/depths/N/` is a run folder of its own, whose student has the first N layers: all that reads
runs reads it. What is the same (the teacher, the table) is the same file. It is made anew where the
run has other weights since, as one that is trained further has.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import load_file

from tsarch.blueprint import resolve
from tsarch.config import Config
from tsarch.config_loading import dump_config, load_config
from tsarch.errors import UserError
from tsarch.model_folder import (
    config_at_depth,
    depths_of,
    files_digest,
    save_weights,
    saved_config,
)
from tsarch.models.depths import cut_weights
from tsarch.models.skeleton import layer_stacks, make_skeleton, shrink_config
from tsarch.run.checkpoint_keeper import link_or_copy
from tsarch.run.versions import current_folder
from tsarch.telling.run_folder import write_atomically
from tsarch.topology import Stage

DEPTHS = "depths"
_MADE_OF = "made-of.txt"
"""Digest of the run's `model/` that a folder was made of."""
_STUDENT = Stage.STUDENT.name


def at_depth(run: Path, depth: int | None) -> Path:
    """The folder of a run (its current version) whose student has `depth` layers; None: as many as
    there are. It is made when it is first asked for, or the run's weights are others since.

    Raises:
        UserError: the student wasn't trained for it, or the folder can't be written.
    """
    if depth is None:
        return run
    folder = current_folder(run)
    for needed in ("config.yaml", "model/task.json"):
        if not (folder / needed).is_file():
            raise UserError.single(str(run), f"is not a finished run ({needed} is missing).")
    config = load_config(folder / "config.yaml")
    depths = depths_of(config)
    if depth not in depths:
        what = "is none that the student was trained for."
        known = ", ".join(map(str, depths))
        hint = f"It works at {known}." if depths else "Train with student.depths: [2, 3]."
        raise UserError.single(f"depth {depth} of {run}", what, hint)
    target = folder / DEPTHS / str(depth)
    if depth == depths[-1]:
        return folder
    files = (own for own in sorted((folder / "model").rglob("*")) if own.is_file())
    digest = files_digest(files)
    if _made_of(target) != digest:
        try:
            _write(folder, target, config, depth)
            write_atomically(target / _MADE_OF, digest)  # last: with it the folder is whole
        except OSError as error:
            raise UserError.single(str(target), f"can't be written: {error.strerror}.") from None
    return target


def _made_of(target: Path) -> str | None:
    """Digest of what a folder was made of; None: it isn't whole."""
    try:
        return (target / _MADE_OF).read_text(encoding="utf-8")
    except OSError:
        return None


def _write(folder: Path, target: Path, config: Config, depth: int) -> None:
    """Write the folder's models and config, in place of those that it has."""
    model, own = folder / "model", target / "model"
    shutil.rmtree(own, ignore_errors=True)
    for old in (_MADE_OF, "summary.json"):
        (target / old).unlink(missing_ok=True)
    saved = resolve(saved_config(config, model)).stages[Stage.STUDENT].architecture
    stacks = [name for name, _ in layer_stacks(make_skeleton(saved.built, None).model)]
    own.mkdir(parents=True, exist_ok=True)
    for file in sorted(model.rglob("*")):
        name = file.relative_to(model)
        is_own = name.parts[0] in (_STUDENT, f"{_STUDENT}.safetensors", "task.json")
        if file.is_file() and not is_own:
            (own / name).parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(file, own / name)
    state = load_file(model / f"{_STUDENT}.safetensors")
    save_weights(own, Stage.STUDENT, cut_weights(state, stacks, depth))
    smaller = saved.built
    shrink_config(smaller, range(depth))
    smaller.save_pretrained(own / _STUDENT)
    smaller_run = config_at_depth(config, depth, str(target))
    write_atomically(target / "config.yaml", dump_config(smaller_run))
    write_atomically(own / "task.json", (model / "task.json").read_text(encoding="utf-8"))
