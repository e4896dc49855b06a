"""The script for `ray submit` and `ray job submit`: find the project's environment, then train.

    ray submit cluster/onpremise.yaml launch/train.py -- configs/quickstart.yaml
    ray job submit --working-dir . -- python launch/train.py configs/quickstart.yaml

`ray submit` copies this file alone to the head's home folder and runs it there with any `python`.
So it needs nothing but the standard library of Python 3.6 until it runs in the right environment.
"""

import importlib.util
import os
import sys
from pathlib import Path
from typing import NoReturn

SCRIPT = Path(os.path.realpath(__file__))
NEEDED = ("tsarch.launch.cli", "tsarch.config", "ray", "torch", "deepspeed", "typer")
STARTED = "TSARCH_LAUNCH_PYTHON"  # set for the second start, so that there is never a third


def possible_homes() -> "list[Path]":
    """Folders that may be the project's, the likeliest first."""
    named = [Path(os.path.abspath(n)) for n in [os.environ.get("TSARCH_HOME")] if n]
    return [*named, SCRIPT.parent.parent, Path.cwd(), Path.home() / "tsarch"]


def fix_import_path() -> None:
    """Replace this file's folder, which Python puts on the path, by the project's (if it is in one,
    and not in an installed package): in the head's home folder, the project's folder would pass for
    the package `tsarch`."""
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry) != str(SCRIPT.parent)]
    if (SCRIPT.parent.parent / "tsarch" / "launch" / "cli.py").is_file():
        sys.path.insert(0, str(SCRIPT.parent.parent))


def enter_home(homes: "list[Path]", arguments: "list[str]") -> None:
    """Go to the project's folder if the config is found there, and not from here."""
    config = next((a for a in arguments if a.endswith((".yaml", ".yml")) and "=" not in a), "")
    holders = [home for home in homes if (home / config).is_file()]
    if holders and not Path(config).exists():
        os.chdir(str(holders[0]))


def can_train() -> bool:
    """Whether this interpreter has the project and what it needs."""
    try:
        return sys.version_info >= (3, 11) and all(map(importlib.util.find_spec, NEEDED))
    except ImportError:  # find_spec imports the packages of dotted names
        return False


def start_again(homes: "list[Path]", arguments: "list[str]") -> NoReturn:
    """Replace this process by the same in the project's environment, or end with status 2."""
    pythons = [str(home / ".venv" / "bin" / "python") for home in homes]
    python = next((python for python in pythons if os.access(python, os.X_OK)), None)
    if STARTED not in os.environ and python is not None:
        os.execve(python, [python, str(SCRIPT), *arguments], {**os.environ, STARTED: python})
    lacking = os.environ.get(STARTED, "") + " lacks packages that tsarch needs."
    missing = "no environment of tsarch found. Looked for " + ", ".join(pythons) + "."
    hint = "Run `make install` in the project's folder, and set TSARCH_HOME if it is elsewhere."
    sys.stderr.write(f"error: {lacking if STARTED in os.environ else missing} {hint}\n")
    sys.exit(2)


def main(arguments: "list[str]") -> None:
    """Train with `arguments`, on the Ray cluster that this host or job belongs to."""
    homes = possible_homes()
    fix_import_path()
    enter_home(homes, arguments)
    if not can_train():
        start_again(homes, arguments)
    os.environ.pop(STARTED, None)
    if not any(argument.split("=")[0] == "--address" for argument in arguments):
        arguments = [*arguments, "--address", "auto"]
    importlib.import_module("tsarch.launch.cli").main(["train", *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
