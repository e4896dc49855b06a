"""Writes a rank's files of a checkpoint in a thread of its own."""

from __future__ import annotations

import threading
import time
from functools import partial

from safetensors.torch import save_file

from tsarch.checkpoint.cut import Written
from tsarch.checkpoint.host_copies import Files
from tsarch.checkpoint.manifest import FileEntry
from tsarch.checkpoint.store import Store
from tsarch.errors import one_line


class BackgroundWriter:
    """One checkpoint at a time."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._written: Written | None = None
        self._gives_up = False

    def start(self, url: str, step: int, files: Files) -> None:
        """Start writing; the tensors must stay as they are until `result` gives something."""
        assert self._thread is None or not self._thread.is_alive(), "the last one isn't written yet"
        self._written, self._gives_up = None, False
        # A daemon: a rank that ends for another reason must not wait for a dead disk.
        self._thread = threading.Thread(
            target=self._run, args=(url, step, files), name="checkpoint", daemon=True
        )
        self._thread.start()

    def result(self, wait: bool) -> Written | None:
        """What the last `start` has written; None: still at it (never with `wait`)."""
        assert self._thread is not None, "nothing was to be written"
        if wait:
            self._thread.join()
        return None if self._thread.is_alive() else self._written

    def give_up(self) -> None:
        """Write no further file; waits for the one that is being written."""
        self._gives_up = True
        if self._thread is not None:
            self._thread.join()

    def _run(self, url: str, step: int, files: Files) -> None:
        started_s = time.perf_counter()
        entries: dict[str, FileEntry] = {}
        error = None
        try:
            store = Store(url)
            for name, tensors in files.items():
                if self._gives_up:
                    break
                entries[name] = store.put(step, name, partial(save_file, tensors))
        except Exception as caught:  # whatever it is, the driver tells it
            error = one_line(caught)
        self._written = Written(entries, time.perf_counter() - started_s, error)
