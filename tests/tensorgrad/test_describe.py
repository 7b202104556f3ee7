"""How tensors and modules are shown in notebooks; test_tensor.py and test_nn.py have the text."""

import numpy as np
import pytest

import tensorgrad as tg
from tensorgrad import nn

pytestmark = pytest.mark.usefixtures("numpy_backend")


def test_a_matrix_is_a_table_of_at_most_eight_rows_and_columns() -> None:
    x = tg.Tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
    assert x._repr_html_() == (
        "<table><tr><td>0</td><td>1</td><td>2</td></tr><tr><td>3</td><td>4</td><td>5</td></tr></table>"
        "<code>Tensor (2, 3), dtype=float64, requires_grad=True</code>"
    )
    large = tg.ones((20, 30))._repr_html_()
    assert (large.count("<tr>"), large.count("<td>"), large.count("…")) == (9, 81, 17)
    assert "made by exp" in tg.exp(x)._repr_html_()
    assert tg.ones((2, 2, 2))._repr_html_().startswith("<pre>Tensor([[[1., 1.]")
    assert tg.ones((0,))._repr_html_() == "<pre>Tensor([], dtype=float32)</pre>"


def test_a_module_can_be_unfolded() -> None:
    html = nn.Sequential(nn.Linear(2, 3), nn.ReLU())._repr_html_()
    assert html == (
        "<details open><summary><code>Sequential, 9 parameters</code></summary><ul>"
        "<li>0: <code>Linear(weight (3, 2), bias (3,)), 9 parameters</code></li><li>1: <code>ReLU</code></li>"
        "</ul></details>"
    )
