"""A pair that computes by onnxruntime on NumPy's arrays: no torch."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tsarch.data.replica_arrays import parts_by_length
from tsarch.errors import UserError, one_line
from tsarch.pair.states import States, Tokens, Window
from tsarch.records import Array, FloatArray, IntArray

if TYPE_CHECKING:
    from onnxruntime import InferenceSession  # type: ignore[import-untyped]

DESCRIPTION = "pair.json"
Weights = Literal["fp32", "int8"]


class OnnxPair:
    """The graphs of an exported folder, ready to answer. A graph is read when it is first needed.

    Args:
        folder: with the graphs and `pair.json`.
        device: `auto`, `cpu` or `cuda`.
    """

    def __init__(self, folder: Path, precision: Weights = "fp32", device: str = "cpu") -> None:
        self._folder = folder
        self._device = device
        self.description = read_description(folder)
        files: dict[str, dict[str, str]] = self.description["files"]
        if precision not in files:
            hint = f"It has {', '.join(files)}; `tsarch export --int8` writes both."
            raise UserError.single(str(folder), f"has no {precision} graphs.", hint)
        self._files = files[precision]
        missing = [own for own in self._files.values() if not (folder / own).is_file()]
        if missing:
            raise UserError.single(str(folder), f"lacks {missing[0]}.", "Copy the folder whole.")
        self._sessions: dict[str, Any] = {}
        self._opening = threading.Lock()

    @property
    def has_teacher(self) -> bool:
        """Whether it can `encode`."""
        return "teacher" in self._files

    @property
    def has_student(self) -> bool:
        """Whether it can `read`."""
        return "student_alone" in self._files

    def open(self) -> None:
        """Read all graphs now."""
        for graph in self._files:
            self._session(graph)

    def encode(
        self,
        contexts: Sequence[IntArray],
        starts: IntArray | None = None,
        types: Sequence[IntArray | None] | None = None,
    ) -> list[States]:
        """The teacher's states of each context, without padding."""
        tokens = Tokens.padded(contexts, types)
        hidden, predictions = self._run("teacher", tokens, {})
        return [
            States(hidden[row, : len(own)], predictions[row, : len(own)])
            for row, own in enumerate(contexts)
        ]

    def own(self, states: States) -> States:
        """States as they are: a file has NumPy's arrays, and so has this pair."""
        return states

    def read(self, windows: Sequence[Window]) -> list[Array]:
        """The student's (tokens, outputs) predictions of each window; those of like lengths are
        padded together."""
        found: dict[int, Array] = {}
        for fed in (True, False):
            own = [n for n, window in enumerate(windows) if (window.hidden is not None) == fed]
            lengths = np.array([len(windows[n].token_ids) for n in own], dtype=np.int64)
            for part in parts_by_length(lengths) if own else ():
                places = [own[place] for place in part]
                said = self._read([windows[place] for place in places], fed)
                found |= dict(zip(places, said, strict=True))
        return [found[place] for place in range(len(windows))]

    def survey(self, windows: Sequence[Window]) -> list[FloatArray]:
        """Nothing: there is no graph that scores, and whole texts are read."""
        raise AssertionError("there is no graph that scores")

    def _read(self, windows: Sequence[Window], fed: bool) -> list[Array]:
        tokens = Tokens.padded([own.token_ids for own in windows], [own.types for own in windows])
        further: dict[str, Array] = {}
        if fed:
            states = [np.asarray(own.hidden) for own in windows]
            padded = np.zeros((*tokens.places.shape, states[0].shape[-1]), dtype=np.float32)
            is_fed = np.zeros(tokens.places.shape, dtype=np.int64)
            for row, (window, own) in enumerate(zip(windows, states, strict=True)):
                padded[row, window.fed_places] = own
                is_fed[row, window.fed_places] = 1
            further |= {"hidden": padded, "fed_mask": is_fed}
        (said,) = self._run("student" if fed else "student_alone", tokens, further)
        return [said[row, : len(own.token_ids)] for row, own in enumerate(windows)]

    def _run(self, graph: str, tokens: Tokens, further: dict[str, Array]) -> list[Array]:
        session = self._session(graph)
        wanted = {own.name for own in session.get_inputs()}
        given = {"input_ids": tokens.places, "attention_mask": tokens.mask, **further}
        if "token_type_ids" in wanted:
            none = np.zeros_like(tokens.places)
            given["token_type_ids"] = none if tokens.types is None else tokens.types
        given = {name: own for name, own in given.items() if name in wanted}
        found: list[Array] = session.run(None, given)
        return found

    def _session(self, graph: str) -> InferenceSession:
        with self._opening:
            if graph not in self._sessions:
                file = self._folder / self._files[graph]
                self._sessions[graph] = open_session(file, self._device)
            return self._sessions[graph]


def read_description(folder: Path) -> dict[str, Any]:
    """What an exported folder says of its graphs.

    Raises:
        UserError: it has none.
    """
    try:
        raw: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = "Make it one: tsarch export RUN DIR, and load DIR."
        raise UserError.single(str(folder.parent), "has no ONNX models.", hint) from None
    except (OSError, ValueError) as error:
        what = f"can't be read: {one_line(error)}."
        raise UserError.single(str(folder / DESCRIPTION), what) from None
    return raw


def open_session(file: Path, device: str) -> InferenceSession:
    """A graph, ready to run.

    Raises:
        UserError: it can't be read, or onnxruntime has no such device.
    """
    try:
        import onnxruntime
    except ImportError:
        hint = "Install it: pip install 'tsarch[onnx]'"
        raise UserError.single("backend onnx", "onnxruntime is not installed.", hint) from None
    there = onnxruntime.get_available_providers()
    if device == "cuda" and "CUDAExecutionProvider" not in there:
        hint = "Install onnxruntime-gpu, or take device='cpu'."
        raise UserError.single("device cuda", "this onnxruntime has no CUDA.", hint)
    use_cuda = device in ("auto", "cuda") and "CUDAExecutionProvider" in there
    providers = ["CUDAExecutionProvider"] if use_cuda else []
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(
            str(file), options, providers=[*providers, "CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime has errors of its own
        hint = "Export the run again."
        raise UserError.single(str(file), f"can't be read: {one_line(error)}.", hint) from None
