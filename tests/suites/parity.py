"""Every text architecture that transformers knows, built small and held against transformers' own.

`make parity` (a quarter of an hour on one core). Each is saved by transformers with random weights,
as it is by default and with all settings that may change what it computes in another state, then
goes the way of a run: the checks by name and config, and the probe. The table lies in `results/`
and in the site. Exit status 1 if a model is accepted that computes something else.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto import modeling_auto

from tests.generative_configs import tokenizer_folder
from tests.suites.parity_batch import TEXT_KINDS
from tests.suites.parity_table import table

RESULTS = Path(__file__).parent / "results"
_BATCH = 40
_TIMEOUT_S = 1800.0
Kind = dict[str, Any]


def all_kinds() -> list[str]:
    """Model types of transformers' auto classes."""
    return sorted({*modeling_auto.MODEL_MAPPING_NAMES, *(n for m in TEXT_KINDS for n in m)})


def run_batch(folder: Path, names: Sequence[str]) -> list[Kind]:
    """Results of some architectures; a process that dies costs the one that it was at."""
    found: list[Kind] = []
    while rest := names[len(found) :]:
        lines, why = _run(folder, rest)
        found += lines
        if len(found) < len(names):
            name = names[len(found)]
            found.append({"name": name, "outcomes": [], "not_built": f"its process ended: {why}"})
    with (folder / "done.jsonl").open("a") as file:
        file.writelines(json.dumps(kind) + "\n" for kind in found)
    return found


def _run(folder: Path, names: Sequence[str]) -> tuple[list[Kind], str]:
    command = [sys.executable, "-m", "tests.suites.parity_batch", str(folder), *names]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
        said, why = done.stdout, f"exit status {done.returncode}"
    except subprocess.TimeoutExpired as late:
        said, why = (late.stdout or b"").decode(), f"after {_TIMEOUT_S:.0f} s"
    lines = [line for line in said.splitlines() if line.startswith('{"name"')]
    return [json.loads(line) for line in lines], why


def batches(names: Sequence[str]) -> Iterator[list[str]]:
    """Spread, so that none has all the slow ones."""
    number = -(-len(names) // _BATCH)
    yield from (list(names[place::number]) for place in range(number))


def main() -> int:
    """Sweep, write the table; 1 if something is wrong."""
    names = sys.argv[1:] or all_kinds()
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(2) as threads:
        folder = Path(place)
        tokenizer_folder(folder)
        found: list[Kind] = []
        for part in threads.map(partial(run_batch, folder), batches(names)):
            found += part
            print(f"{len(found)} of {len(names)} architectures", flush=True)
        found.sort(key=lambda kind: str(kind["name"]))
    result = {"transformers": transformers.__version__, "kinds": found}
    if not sys.argv[1:]:
        text = json.dumps(result, indent=1) + "\n"
        (RESULTS / "parity.json").write_text(text, encoding="utf-8")
        (RESULTS / "parity.md").write_text(table(result), encoding="utf-8")
    else:
        print(table(result))
    wrong = [k["name"] for k in found if any(o["status"] == "wrong" for o in k["outcomes"])]
    print(f"{len(found)} architectures; accepted and wrong: {', '.join(wrong) or 'none'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
