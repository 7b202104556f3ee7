"""Where the library, and the programs that use it, keep what can be made or downloaded again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder, by the XDG base directory specification; it need not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tensorgrad"
