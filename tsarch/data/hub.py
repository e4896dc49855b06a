"""Whether the Hugging Face hub can be asked at all, found out once and soon.

Its client tries again for half a minute with each file, and says so line by line. Here one short
question comes before: where it has no answer, this process and those that it starts take what is in
the cache, and what isn't there is one message.
"""

from __future__ import annotations

import os
import sys
import threading
from functools import lru_cache
from pathlib import Path

from tsarch.errors import one_line

_PATIENCE_S = 5.0
"""How long the hub may take to answer, or the network to say that it can't be found."""
_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")
WAYS_ON = (
    "Give the folder of a copy, or load it once where there is a network and copy the cache "
    "(HF_HOME). HF_HUB_OFFLINE=1 asks no hub, HF_ENDPOINT names another one."
)
"""What to do about something that is neither here nor to be had."""


def is_hub_name(name: str) -> bool:
    """Whether a model's or data set's name is one of the hub: no folder, no package."""
    if name.startswith(("package:", "/", "./", "../", "~")):
        return False
    return not os.path.isdir(name)


def why_absent(name: str) -> str | None:
    """Why a model or tokenizer can be neither loaded from the hub nor found in its cache; None: it
    isn't of the hub, or there is no such reason."""
    if not is_hub_name(name) or (reason := unreachable()) is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    try:
        found = [try_to_load_from_cache(name, file) for file in _FILES]
    except ValueError as error:  # it can be no name at all
        return one_line(error)
    if any(isinstance(path, str | Path) for path in found):
        return None
    return f"it is not in the cache, and {reason}"


@lru_cache(maxsize=1)
def unreachable() -> str | None:
    """Why the hub can't be asked; None: it can. Asked once in a process; from then on it is offline
    for this process, and for those that it starts."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    problem = _ask(constants.ENDPOINT)
    if problem is None:
        return None
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:  # it keeps a copy
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True
    return f"the hub ({constants.ENDPOINT}) {problem}"


def _ask(endpoint: str) -> str | None:
    """What is wrong with a hub, through the user's proxies; None: it answers."""
    from huggingface_hub import get_session

    said: list[str | None] = []

    def ask() -> None:
        try:
            status = get_session().head(endpoint, timeout=_PATIENCE_S).status_code
            said.append(f"answers with error {status}" if status >= 500 else None)
        except Exception as error:  # of the network, of proxies, of certificates
            said.append(f"can't be reached: {one_line(error).rstrip('.')}")

    asking = threading.Thread(target=ask, daemon=True)  # a name server may take minutes
    asking.start()
    asking.join(_PATIENCE_S + 1.0)
    return said[0] if said else f"doesn't answer within {_PATIENCE_S:.0f} s"
