"""Reverse-mode automatic differentiation: begin with `tape.py`. Whatever watches the tape is an `Observer`."""

from tensorgrad.autograd.accumulate import SparseGradient
from tensorgrad.autograd.context import Context
from tensorgrad.autograd.inplace import note_write, saved_arrays
from tensorgrad.autograd.mode import enable_grad, is_grad_enabled, no_grad
from tensorgrad.autograd.observer import Observer
from tensorgrad.autograd.tape import Edge, Leaf, Node, Variable, backward, op
