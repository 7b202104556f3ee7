"""The cases that every op is tried on, by the op's name: `cases["softmax"]`."""

from tensorgrad.gradcheck.cases import comparison, elementwise, indexing, linalg, manipulation, network, reduction
from tensorgrad.gradcheck.cases.case import Case

__all__ = ["Case", "cases", "differentiable", "without_gradient"]

cases: dict[str, list[Case]] = {
    **elementwise.cases,
    **reduction.cases,
    **manipulation.cases,
    **indexing.cases,
    **linalg.cases,
    **network.cases,
    **comparison.cases,
}
without_gradient = [name for name, of_op in cases.items() if of_op[0].reference is not None]
differentiable = [name for name in cases if name not in without_gradient]
