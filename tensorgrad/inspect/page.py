"""An HTML page in one file: styles, scripts and data are all inside it, so it opens from disk without a network.

Nothing in the data can become a part of the page. It is written as JSON in which `<`, `>` and `&` are escaped, scripts
show it as text nodes, and the page's content security policy runs no script but the one written here.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STATIC = Path(__file__).with_name("static")
_IMPORT = re.compile(r'^import\s[^;]*?\sfrom\s+"[^"]+";\n', re.M)
_EXPORT = re.compile(r"^export (?=(async )?(function|const|let|class)\b)", re.M)
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; {policy}">
<title>{title}</title>
<style>{style}</style>
{body}
<script type="application/json" id="data">{data}</script>
<script type="module">{script}</script>
</html>
"""


def build_page(title: str, data: Any, *, body: Path, styles: Sequence[Path] = (), scripts: Sequence[Path] = ()) -> str:
    """Return a page as HTML: body, a file of HTML, with the styles and scripts after base.css and base.js.

    data: anything that JSON can express, which scripts get from `pageData()`. The scripts are JavaScript modules whose
    imports stand before them in the list: here they become one, so no two may define the same name. Raises ValueError
    for data with a NaN or an infinity, which JSON cannot express: `encode` arrays.
    """
    style = "\n".join(path.read_text(encoding="utf-8") for path in (STATIC / "base.css", *styles))
    script = "\n".join(_without_imports(path) for path in (STATIC / "base.js", *scripts))
    for text, end in ((style, "</style"), (script, "</script"), (script, "<!--")):
        if end in text.lower():
            raise ValueError(f"build_page: a style or script contains {end}, which would end it there")
    title = html.escape(title.encode(errors="replace").decode())  # a file name may hold half a character
    return _PAGE.format(
        title=title, policy=f"script-src {_hash(script)}; style-src {_hash(style)}", style=style,
        body=body.read_text(encoding="utf-8"), data=_json(data), script=script,
    )  # fmt: skip


def inline(page: str, height: int = 760) -> str:
    """Return HTML that shows a page inside a notebook, apart from the notebook's own styles and scripts."""
    style = f"width: 100%; height: {height}px; border: 0"
    return f'<iframe sandbox="allow-scripts" style="{style}" srcdoc="{html.escape(page)}"></iframe>'


def _without_imports(path: Path) -> str:
    return _EXPORT.sub("", _IMPORT.sub("", path.read_text(encoding="utf-8")))


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(data: Any) -> str:
    """JSON that is also safe in HTML: ASCII alone, and none of the characters that HTML gives a meaning to."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")
