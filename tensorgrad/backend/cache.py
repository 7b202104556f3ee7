"""Where the library, and the programs that use it, keep what can be made or downloaded again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder, by the XDG base directory specification; it need not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tensorgrad"


def sources(*paths: str | Path) -> bytes:
    """The code of modules, or of all modules in folders: what is computed depends on it."""
    files = [path for given in map(Path, paths) for path in (sorted(given.glob("*.py")) if given.is_dir() else [given])]
    return b"\0".join(path.read_bytes() for path in files)
