"""The package `speculators` reads an exported drafter and proposes what it proposes here.

`make speculators`, or `python -m tests.suites.speculators_reads EXPORTED` for a folder of your own
(`tsarch export`). The package wants an older transformers than tsarch has, so it is installed into
a folder of its own, beside the libraries of this environment (a network, 20 MB). Both are given the
states of the exported teacher and propose three tokens after every place. Exit status 1 if the
logits differ by more than rounding, or a token differs.
"""

from __future__ import annotations

import os
import subprocess
import sysconfig
import tempfile
import venv
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.drafter_configs import trained_and_exported
from tests.suites.speculators_side import STEPS
from tsarch.export.drafter import VERSION
from tsarch.export.models import TrainedModels, read_models

_PACKAGES = (
    f"speculators=={VERSION}",
    f"hs-connectors=={VERSION}",
    "transformers==5.19.0",
    "loguru==0.7.3",
    "pydantic-settings==2.16.3",
    "python-dotenv==1.2.4",
    "openai==3.57.0",
    "distro==1.9.0",
    "jiter==0.19.0",
    "sniffio==1.3.1",
)
_TOKENS = 128
"""Of the text; the package's masks are blocks of so many."""
_MOST_APART = 1e-4
"""Of the largest logit, in fp32."""


def main(
    exported: Annotated[
        Path | None, typer.Argument(help="An exported drafter and its teacher; none: a tiny one.")
    ] = None,
) -> None:
    """Compare, and say what was seen."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        target = exported or trained_and_exported(folder)
        models = read_models(target)
        assert models.teacher is not None
        vocabulary = len(models.table)
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, vocabulary, (_TOKENS,), generator=generator)
        wanted = _own_logits(models, tokens)
        found = _their_logits(folder, target, tokens)
    print(f"speculators {VERSION}, {_TOKENS} tokens, a vocabulary of {vocabulary:,}")
    fits = True
    for step, own in enumerate(wanted):
        logits, choices = found[f"logits.{step}"], found[f"tokens.{step}"]
        # Its place i is the one after token i; later steps have no token beside the last ones.
        count = _TOKENS - 1 - step
        theirs, here = logits[:count], own[step + 1 : step + 1 + count]
        apart = float((theirs - here).abs().max() / here.abs().max())
        assert models.drafter is not None
        same = int((choices[:count] == models.drafter.choices[here.argmax(dim=-1)]).sum())
        print(f"token {step + 1} ahead: logits {apart:.1e} apart, {same} of {count} tokens equal")
        fits = fits and apart <= _MOST_APART and same == count
    raise typer.Exit(0 if fits else 1)


@torch.no_grad()
def _own_logits(models: TrainedModels, tokens: Tensor) -> list[Tensor]:
    """Per step (tokens, draft_vocab) logits of the trained drafter, as it learns: each step upon
    its own states of the one before, and the text's own tokens."""
    assert models.teacher is not None
    drafter: Any = models.drafter
    embeds, mask = models.table[tokens][None], torch.ones(1, len(tokens), dtype=torch.long)
    hidden, *_ = models.teacher(embeds, mask)
    drafter.train().num_steps = STEPS
    said = drafter([embeds], [mask], hidden[0], [torch.arange(len(tokens))[None]])
    return [own[0] @ models.table[drafter.choices].t() for own in said]


def _their_logits(folder: Path, exported: Path, tokens: Tensor) -> dict[str, Tensor]:
    """Those of the package, with the tokens that it takes."""
    python = _environment(folder / "environment")
    save_file({"tokens": tokens}, folder / "tokens.safetensors")
    given = [str(folder / "tokens.safetensors"), str(folder / "said.safetensors")]
    side = Path(__file__).with_name("speculators_side.py")
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    command = [str(python), str(side), *given]
    subprocess.run(command, check=True, cwd=exported.resolve(), env=settings)
    said: dict[str, Tensor] = load_file(folder / "said.safetensors")
    return said


def _environment(folder: Path) -> Path:
    """Its Python: what is installed here, but for what the package wants otherwise."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    own = sysconfig.get_path("purelib", vars={"base": str(folder)})
    (Path(own) / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", *_PACKAGES]
    subprocess.run(install, check=True)
    return python


if __name__ == "__main__":
    typer.run(main)
