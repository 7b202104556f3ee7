"""The one list of ops: every family's, one file each. An op's forward and backward stand together in one function."""
# ruff: noqa: F403

import importlib
from typing import TYPE_CHECKING

from tensorgrad.ops.activation import *
from tensorgrad.ops.attention import *
from tensorgrad.ops.comparison import *
from tensorgrad.ops.cross_entropy import *
from tensorgrad.ops.dropout import *
from tensorgrad.ops.elementwise import *
from tensorgrad.ops.embedding import *
from tensorgrad.ops.indexing import *
from tensorgrad.ops.linalg import *
from tensorgrad.ops.manipulation import *
from tensorgrad.ops.mlp import *
from tensorgrad.ops.normalization import *
from tensorgrad.ops.reduction import *
from tensorgrad.ops.softmax import *

if TYPE_CHECKING:
    from tensorgrad.ops.contraction import *
    from tensorgrad.ops.elementary import *
    from tensorgrad.ops.gated import *
    from tensorgrad.ops.losses import *
    from tensorgrad.ops.rearrangement import *
    from tensorgrad.ops.selection import *

# What a training step does without is imported when it is first used: name -> family.
LATER = {
    name: family
    for family, names in {
        "contraction": "einsum outer tensordot",
        "elementary": "cos erf expm1 leaky_relu log1p logaddexp reciprocal sign sin softplus",
        "gated": "swiglu",
        "losses": "binary_cross_entropy_with_logits mse_loss nll_loss",
        "rearrangement": "diagonal flip moveaxis pad roll tile tril triu",
        "selection": "argsort count_nonzero index_add masked_fill nonzero sort topk",
    }.items()
    for name in names.split()
}


def __getattr__(name: str) -> object:
    if name not in LATER:
        raise AttributeError(f"module 'tensorgrad.ops' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tensorgrad.ops.{LATER[name]}"), name)


if not TYPE_CHECKING:  # type checkers take the names from the imports; this leaves out the modules of the same package
    __all__ = [name for name, value in list(globals().items()) if callable(value) and not name.startswith("_")]
