"""The parameters of kernels, parsed from the .cu files, so that every launch can be checked against them."""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent

# C types of kernel parameters, and NumPy's names for them
DTYPES = {
    "bool": "bool", "char": "int8", "signed char": "int8", "unsigned char": "uint8",
    "short": "int16", "unsigned short": "uint16", "int": "int32", "unsigned": "uint32", "unsigned int": "uint32",
    "long long": "int64", "unsigned long long": "uint64",
    "float": "float32", "double": "float64", "__half": "float16", "__nv_bfloat16": "bfloat16",
}  # fmt: skip
C_TYPES = {"float64": "double", "float32": "float", "float16": "__half", "bfloat16": "__nv_bfloat16"}

COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]+(?:"([^"]+)"|<[^>]+>).*$', re.MULTILINE)
KERNEL = re.compile(
    r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\(([^)]*)\)', re.DOTALL
)
ALIAS = re.compile(r"\busing\s+(\w+)\s*=\s*(Wide<\s*\w+\s*>|[\w ]+);")
QUALIFIERS = re.compile(r"\b(?:const|volatile|__restrict__|__grid_constant__)\b")


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel: its C type without const, whether it is a pointer, and its dtype."""

    name: str
    c_type: str
    pointer: bool
    dtype: str  # NumPy's name


def path_of(source: str) -> Path:
    """The path of a .cu file; source: its name without .cu."""
    return FOLDER / f"{source}.cu"


def dependencies(path: Path) -> list[Path]:
    """The file and all headers of this folder that it includes, directly or not."""
    found, waiting = [path], [path]
    while waiting:
        for name in INCLUDE.findall(waiting.pop().read_text(encoding="utf-8")):
            if name and (FOLDER / name) not in found and (FOLDER / name).exists():  # cuda_emulation.h does not
                found.append(FOLDER / name)
                waiting.append(FOLDER / name)
    return found


def with_defines(text: str, defines: Mapping[str, str]) -> str:
    """The source with macros defined after its #include lines, since headers may use a macro's name, such as T."""
    if not defines:
        return text
    lines = "\n".join(f"#define {name} {value}" for name, value in sorted(defines.items()))
    last = max((match.end() for match in INCLUDE.finditer(text)), default=0)
    number = text.count("\n", 0, last) + 2 if last else 1
    start, rest = text[:last], text[last:].removeprefix("\n")
    return f"{start}\n{lines}\n#line {number}\n{rest}" if last else f"{lines}\n#line {number}\n{rest}"


@functools.cache
def signatures(text: str, defines: tuple[tuple[str, str], ...]) -> dict[str, tuple[Parameter, ...]]:
    """The parameters of every kernel of a source, declared as extern "C" __global__ void."""
    names, plain = dict(defines), COMMENT.sub(" ", text)
    for alias, meant in ALIAS.findall(plain):
        wide = re.fullmatch(r"Wide<\s*(\w+)\s*>", meant)
        one = wide[1] if wide else meant.strip()
        one = names.get(one, one)
        names[alias] = ("double" if one == "double" else "float") if wide else one  # Wide of common.cuh
    return {
        kernel: tuple(_parameter(kernel, part, names) for part in listed.split(",") if part.strip())
        for kernel, listed in KERNEL.findall(plain)
    }


def _parameter(kernel: str, declared: str, names: Mapping[str, str]) -> Parameter:
    words = QUALIFIERS.sub(" ", declared.replace("*", " * ")).split()
    *kind, name = words
    stars = kind.count("*")
    c_type = " ".join(word for word in kind if word != "*")
    c_type = names.get(c_type, c_type)
    if stars > 1 or c_type not in DTYPES:
        raise TypeError(f"kernel {kernel}: a parameter declared as {' '.join(declared.split())!r} cannot be checked")
    return Parameter(name, c_type, stars == 1, DTYPES[c_type])
