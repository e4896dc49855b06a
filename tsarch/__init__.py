"""tsarch: two-stage pipeline training of a teacher and a student that share one embedding table."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tsarch.config import Config as Config
    from tsarch.config_loading import load_config as load_config
    from tsarch.data.plain_text import text_rows as text_rows
    from tsarch.errors import UserError as UserError
    from tsarch.prediction.loading import load as load

__version__ = "0.1.0"

_PUBLIC = {
    "Config": "tsarch.config",
    "load_config": "tsarch.config_loading",
    "UserError": "tsarch.errors",
    "load": "tsarch.prediction.loading",
    "text_rows": "tsarch.data.plain_text",
}
__all__ = ["Config", "UserError", "load", "load_config", "text_rows"]


def __getattr__(name: str) -> Any:
    """Load the few public names when they are first used: `import tsarch` stays cheap."""
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'tsarch' has no attribute {name!r}")
