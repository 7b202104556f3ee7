"""A program of its own that runs one chat template: JSON from the standard input, JSON to the standard output.

The environment is that of transformers: jinja2's sandbox, with the functions that templates expect. The process may
compute for CPU_S seconds and hold MEMORY_BYTES, where the system can limit that.
"""

import json
import signal
import sys
from datetime import datetime
from typing import Any, NoReturn

CPU_S = 2
MEMORY_BYTES = 2**29
MAX_CHARACTERS = 2**23  # of the result


def limit_process() -> None:
    """Let the system end this process when it needs too much; Ctrl-C is the caller's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        import resource
    except ImportError:  # Windows: the caller limits the time
        return
    for what, limit in ((resource.RLIMIT_CPU, CPU_S), (resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(what, (limit, limit))


def render(source: str, **variables: Any) -> str:
    """Return what a template makes of its variables; raises whatever the template does."""
    from jinja2 import TemplateError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} marks what a model learns in training; here it has no effect."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": datetime.now().strftime}
    pieces, n_characters = [], 0
    for piece in environment.from_string(source).generate(tools=None, documents=None, **variables):
        pieces.append(piece)
        n_characters += len(piece)
        if n_characters > MAX_CHARACTERS:
            raise OverflowError(f"it writes more than {MAX_CHARACTERS} characters")
    return "".join(pieces)


def main() -> None:
    """Answer one request with {"text": ...} or {"error": ...}."""
    limit_process()
    request = json.load(sys.stdin)
    try:
        answer = {"text": render(**request)}
    except Exception as error:  # a template can raise anything
        answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:200]}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
