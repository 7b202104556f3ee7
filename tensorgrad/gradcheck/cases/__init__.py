"""The registration of every op, by its name: `cases["softmax"]`."""

from tensorgrad.gradcheck.cases import comparison, elementwise, indexing, linalg, manipulation, network, reduction
from tensorgrad.gradcheck.cases.case import Case, Example

__all__ = ["Case", "Example", "cases"]

_families = (elementwise, reduction, manipulation, indexing, linalg, network, comparison)
cases: dict[str, Case] = {case.name: case for family in _families for case in family.cases}
