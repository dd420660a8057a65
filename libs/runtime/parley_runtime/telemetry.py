"""Telemetry: structured logs, and the context (request, trace) that every line bears and every bus message carries.

The context is bound once, where a request or a message comes in; `inject` and `extract` carry it over the bus in two
headers: W3C `traceparent`, and `parley-context` with the log fields of requirements S2-26.
"""

import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
import structlog
from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

CONTEXT_HEADER = "parley-context"
CARRIED = ("request_id", "trace_id", "client_ip", "method", "path", "user_id", "turn_id")
_HIDDEN_NAMES = re.compile(r"authorization|cookie|token|api_?key|secret|password|model_url", re.IGNORECASE)
_SHOWN_NAMES = re.compile(r"_tokens$|^tokens$")  # counts of tokens are no secrets
_HIDDEN_VALUES = re.compile(r"\b(?:sk|pk|rt)-[A-Za-z0-9_-]{8,}|\beyJ[A-Za-z0-9_-]{8,}[A-Za-z0-9_.-]*")
_IDS = RandomIdGenerator()


def configure_logging(service: str, *, level: str = "info", log_format: str = "json") -> None:
    """Log to stdout, once per process; in an all-in-one process `service` is `parley`, and each line names its own."""
    renderer: Any = structlog.processors.JSONRenderer() if log_format == "json" else structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            scrub,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stdout),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s", stream=sys.stdout)


def scrub(_logger: Any, _method: str, event: Any) -> Any:
    """Take secrets out of a log line: by the field's name, and by what a value looks like."""
    for name, value in event.items():
        if _HIDDEN_NAMES.search(name) and not _SHOWN_NAMES.search(name):
            event[name] = "[hidden]"
        elif isinstance(value, str):
            event[name] = hide_secrets(value)
    return event


def hide_secrets(text: str) -> str:
    """`text` without anything that looks like a key or a token."""
    return _HIDDEN_VALUES.sub("[hidden]", text)


def begin_trace(traceparent: str | None = None) -> tuple[Any, str]:
    """Continue the caller's trace, or begin one: returns an OpenTelemetry context and its trace id in hex."""
    context = propagate.extract({"traceparent": traceparent}) if traceparent else otel_context.Context()
    span_context = trace.get_current_span(context).get_span_context()
    if not span_context.is_valid:
        span_context = trace.SpanContext(
            trace_id=_IDS.generate_trace_id(),
            span_id=_IDS.generate_span_id(),
            is_remote=False,
            trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED),
        )
        context = trace.set_span_in_context(trace.NonRecordingSpan(span_context), context)
    return context, trace.format_trace_id(span_context.trace_id)


@contextmanager
def bound(context: Any = None, **fields: Any) -> Iterator[None]:
    """Everything logged and said inside bears `fields`; what was bound before comes back afterwards."""
    token = otel_context.attach(context) if context is not None else None
    with structlog.contextvars.bound_contextvars(**fields):
        try:
            yield
        finally:
            if token is not None:
                otel_context.detach(token)


def inject() -> dict[str, str]:
    """Headers for a bus message that carry the current context."""
    headers: dict[str, str] = {}
    propagate.inject(headers)
    bound_fields = structlog.contextvars.get_contextvars()
    carried = {name: bound_fields[name] for name in CARRIED if name in bound_fields}
    if carried:
        headers[CONTEXT_HEADER] = msgspec.json.encode(carried).decode()
    return headers


@contextmanager
def extract(headers: Mapping[str, str]) -> Iterator[None]:
    """Work inside the context that a bus message carried; one that cannot be read is left out."""
    fields: dict[str, Any] = {}
    if text := headers.get(CONTEXT_HEADER):
        try:
            fields = msgspec.json.decode(text, type=dict[str, str | int])
        except msgspec.DecodeError:
            fields = {}
    with bound(propagate.extract(dict(headers)), **{name: fields[name] for name in CARRIED if name in fields}):
        yield
