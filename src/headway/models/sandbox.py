"""Runs a chat template that came with a model file: no access to Python, bounded output, bounded time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.ext import loopcontrols
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from headway.core.errors import InvalidRequest, ModelError

MAX_OUTPUT_CHARACTERS = 16 << 20
MAX_SECONDS = 5.0


class _OutOfBounds(Exception):
    """The template ran too long or wrote too much."""


class _Bounded(ImmutableSandboxedEnvironment):
    """Looks at the clock where a template touches a value, and refuses products that would be huge."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))
    deadline_s = float("inf")

    def _check(self) -> None:
        if time.monotonic() > self.deadline_s:
            raise _OutOfBounds(f"it ran longer than {MAX_SECONDS:g} s")

    def getattr(self, obj: Any, attribute: str) -> Any:
        self._check()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self._check()
        return super().getitem(obj, argument)

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        self._check()
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self._check()
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "**" or (operator == "*" and not numbers) or (operator == "%" and isinstance(left, str)):
            raise _OutOfBounds(f"it uses {operator!r} on {type(left).__name__} and {type(right).__name__}, which could grow without bound")
        if operator == "+" and isinstance(left, str) and isinstance(right, str) and len(left) + len(right) > MAX_OUTPUT_CHARACTERS:
            raise _OutOfBounds(f"it builds a text of more than {MAX_OUTPUT_CHARACTERS} characters")
        return super().call_binop(context, operator, left, right)


class Sandbox:
    """One compiled template. `render` may be called from one thread at a time."""

    def __init__(self, source: str) -> None:
        self._environment = _Bounded(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        self._environment.filters["tojson"] = _to_json
        functions: dict[str, Callable[..., Any]] = {"raise_exception": _refuse, "strftime_now": _now}
        self._environment.globals.update(functions)
        try:
            self._template = self._environment.from_string(source)
        except (TemplateSyntaxError, RecursionError) as error:
            raise ModelError(f"the chat template does not compile: {error}; pass another one with --chat-template") from error

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text; raises `InvalidRequest` with what the template objected to."""
        self._environment.deadline_s = time.monotonic() + MAX_SECONDS
        pieces, size = [], 0
        try:
            for piece in self._template.generate(dict(variables)):
                size += len(piece)
                if size > MAX_OUTPUT_CHARACTERS:
                    raise _OutOfBounds(f"it wrote more than {MAX_OUTPUT_CHARACTERS} characters")
                self._environment._check()
                pieces.append(piece)
        except InvalidRequest:
            raise
        except _OutOfBounds as error:
            raise InvalidRequest(f"the chat template was stopped: {error}; send fewer or shorter messages", param="messages") from error
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
            raise InvalidRequest(f"the model's chat template cannot render these messages: {error}", param="messages") from error
        return "".join(pieces)


def _refuse(message: object) -> NoReturn:
    raise InvalidRequest(f"the model's chat template refused the messages: {message}", param="messages")


def _now(form: str) -> str:
    return datetime.now().strftime(str(form))


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=None if indent is None else min(int(indent), 16))
