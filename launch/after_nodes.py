"""Train as soon as a Ray cluster has so many nodes:

    python -m tsarch.launch.after_nodes NODES ADDRESS CONFIG [options of `tsarch train`]

For schedulers that start Ray on hosts themselves, where no autoscaler knows how many will come
(`cluster/slurm.sh`).
"""

from __future__ import annotations

import typer

from tsarch.launch.cli import main, run_command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(context: typer.Context, nodes: int, address: str) -> None:
    """Wait until the Ray at ADDRESS has so many NODES, then train."""
    from tsarch.cluster.coming_nodes import wait_for_nodes

    wait_for_nodes(nodes, address, typer.echo)
    main(["train", *context.args, "--address", address])


if __name__ == "__main__":
    run_command(app)
