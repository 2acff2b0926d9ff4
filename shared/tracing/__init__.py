"""Tracing, enabled by OpenTelemetry's standard variables."""

import os
from collections.abc import Mapping

from opentelemetry.trace import SpanKind

from shared.settings import exit_with_problems
from shared.tracing.spans import (
    CURRENT,
    NO_OP,
    Attributes,
    Span,
    Tracing,
    find_trace_id,
    is_recording,
    start_root_span,
    start_span,
)

SHUTDOWN_SECONDS = 2.0
"""How long a stopping process waits for the export of its last spans."""
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def configure_tracing(service: str) -> None:
    """Record and export the spans of this process if the environment enables tracing.

    Exits with 2 for a value that is not supported.
    """
    if not is_enabled(os.environ):
        return
    try:
        from shared.tracing.recorder import build_recorder  # noqa: PLC0415 - costs time and memory, and is an extra
    except ImportError as error:
        exit_with_problems(f"{ENDPOINTS[1]}: tracing needs Inkwell's extra `traces` ({error})")
    Tracing.recorder = build_recorder(service)


def is_enabled(environment: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's variables enable tracing; exits with 2 for an unsupported exporter or protocol."""
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    has_endpoint = any(environment.get(name) for name in ENDPOINTS)
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or exporter == "none":
        return False
    if exporter not in ("", "otlp"):
        exit_with_problems("OTEL_TRACES_EXPORTER: Should be `otlp` or `none`")
    protocol = next((environment[name] for name in PROTOCOLS if environment.get(name)), "http/protobuf")
    if (has_endpoint or exporter) and protocol != "http/protobuf":
        exit_with_problems("OTEL_EXPORTER_OTLP_PROTOCOL: Should be `http/protobuf`")
    return has_endpoint or exporter == "otlp"


def shut_down_tracing() -> None:
    """Export the last spans; those not exported within SHUTDOWN_SECONDS are lost."""
    if Tracing.recorder:
        Tracing.recorder.shut_down(SHUTDOWN_SECONDS)
