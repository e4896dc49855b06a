"""What importing and loading cost, beside what the libraries cost that it needs in any case.

Each step is a process of its own that does all before it too; seconds are of the CPU, so that
others on the machine count little, and memory is what is resident in the end.

    python -m benchmarks.start_floor RUN [--turns 5]
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

_BERT = "from transformers.models.bert.modeling_bert import BertModel"
STEPS = {
    "torch": "import torch",
    "and transformers": "import torch, transformers",
    "and a model class and a tokenizer of it": (
        f"import torch; {_BERT}; from transformers import AutoTokenizer"
    ),
    "`tsarch.load`, all modes": "import tsarch; tsarch.load(RUN, device='cpu')",
    "`tsarch.load`, `teacher`": "import tsarch; tsarch.load(RUN, device='cpu', modes=['teacher'])",
    "`tsarch.load`, `student_alone`": (
        "import tsarch; tsarch.load(RUN, device='cpu', modes=['student_alone'])"
    ),
}
_CHILD = """
import json, sys, time
RUN = sys.argv[1]
{code}
import psutil
print(json.dumps([time.process_time(), psutil.Process().memory_info().rss]))
"""


def main(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    turns: Annotated[int, typer.Option(min=1, help="Processes of each step.")] = 5,
) -> None:
    """Measure, and print the table of docs/results.md."""
    found: dict[str, list[tuple[float, int]]] = {step: [] for step in STEPS}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for _ in range(turns):
        for step, code in STEPS.items():
            command = [sys.executable, "-c", _CHILD.format(code=code), str(run)]
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=True
            )
            seconds, size = json.loads(done.stdout.splitlines()[-1])
            found[step].append((seconds, size))
    print("| imported or loaded | CPU seconds | resident |\n|---|---|---|")
    for step, own in found.items():
        seconds, size = (statistics.median(values) for values in zip(*own, strict=True))
        print(f"| {step} | {seconds:.1f} | {size / 1e6:,.0f} MB |")


if __name__ == "__main__":
    typer.run(main)
