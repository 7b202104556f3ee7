"""Reads the metadata of a GGUF file; gguf.GGUFReader takes seconds for a hundred thousand strings."""

import struct
from pathlib import Path
from typing import Any, BinaryIO

FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata by key, as Python values."""
    with path.open("rb") as file:
        magic, version, _, n = struct.unpack("<4sIQQ", file.read(24))
        assert (magic, version) == (b"GGUF", 3)
        return {_read(file, STRING): _read(file, *struct.unpack("<I", file.read(4))) for _ in range(n)}


def _read(file: BinaryIO, kind: int) -> Any:
    if kind == STRING:
        return file.read(*struct.unpack("<Q", file.read(8))).decode()
    if kind == ARRAY:
        kind, n = struct.unpack("<IQ", file.read(12))
        return [_read(file, kind) for _ in range(n)]
    return struct.unpack(FORMATS[kind], file.read(struct.calcsize(FORMATS[kind])))[0]
