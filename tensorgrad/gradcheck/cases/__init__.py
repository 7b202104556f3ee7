"""The cases that every op is tried on, by the op's name: `cases["softmax"]`."""

from tensorgrad.gradcheck.cases import comparison, elementwise, indexing, linalg, manipulation, network, reduction
from tensorgrad.gradcheck.cases.case import Case

__all__ = ["Case", "cases"]

cases: dict[str, list[Case]] = {
    **elementwise.cases,
    **reduction.cases,
    **manipulation.cases,
    **indexing.cases,
    **linalg.cases,
    **network.cases,
    **comparison.cases,
}
