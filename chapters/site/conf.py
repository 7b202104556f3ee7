"""The site: chapters with their kept outputs, and the pages of docs/. `python chapters/build.py site` builds it."""

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

FUNCTIONS = re.compile(r"(<mi>(?:cos|exp|ln|log|max|min|sin|tanh)</mi>)")

project = "tensorgrad"
extensions = ["myst_nb"]
root_doc = "chapters/index"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the outputs are those that were kept
html_theme = "furo"
html_title = "tensorgrad"
html_math_renderer = "mathml"
html_static_path = ["static"]
html_css_files = ["course.css"]
html_copy_source = False
html_show_sphinx = False
highlight_language = "python"
suppress_warnings = ["toc.not_included"]  # README and the files of code, which other pages link to


def math(writer: Any, node: nodes.Element, display: str) -> None:
    """Write a formula as MathML, which browsers draw without a script or a font from elsewhere."""
    space = '<mspace width="0.17em"></mspace>'  # which browsers do not set beside the name of a function
    formula = FUNCTIONS.sub(rf"<mrow>{space}\1{space}</mrow>", convert(node.astext(), display=display))
    writer.body.append(f'<div class="math">{formula}</div>' if display == "block" else formula)
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Register the renderer of formulas."""
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(lambda writer, node: math(writer, node, "inline"), None),
        block_renderers=(lambda writer, node: math(writer, node, "block"), None),
    )
