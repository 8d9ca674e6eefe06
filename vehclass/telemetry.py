"""A run's span and figures to an OpenTelemetry collector, set up by the standard OTEL_* variables alone.

Needs the extra `otel`. Nothing is sent where no collector is named, and what cannot be sent never fails a run.
"""

from vehclass.errors import VehclassError
from vehclass.metrics import Figures


class NotExported(VehclassError):
    """The run was not told to the OpenTelemetry collector: {reason}."""


def send(figures: Figures, command: str, message: str | None = None) -> None:
    """Sends a span that lasted as long as the run, and its figures; raises NotExported.

    `message` says why a run did not come to its end.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.trace import Status, StatusCode
    except ImportError as error:
        raise NotExported(reason='install the extra: pip install "vehclass[otel]"') from error
    # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES go before this name.
    resource = Resource.create()
    if str(resource.attributes["service.name"]).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": "vehclass"}))
    tracing = TracerProvider(resource=resource, shutdown_on_exit=False)
    tracing.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
    ended = int(figures.finished * 1e9)
    span = tracing.get_tracer("vehclass").start_span(
        command,
        start_time=ended - int(figures.seconds * 1e9),
        attributes={"vehclass.source": figures.source, "vehclass.exit_code": figures.exit_code},
    )
    for stage, seconds in figures.stages.items():
        span.set_attribute(f"vehclass.stage.{stage}.seconds", seconds)
    if not figures.good:
        span.set_status(Status(StatusCode.ERROR, message))
    span.end(ended)
    tracing.shutdown()

    reader = PeriodicExportingMetricReader(OTLPMetricExporter(), export_interval_millis=float("inf"))
    measuring = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
    meter, of = measuring.get_meter("vehclass"), {"source": figures.source}
    images = meter.create_counter("vehclass.images", unit="{image}", description="Images by outcome.")
    for model, outcomes in figures.images.items():
        for outcome, count in outcomes.items():
            images.add(count, {**of, "model": model, "outcome": outcome})
    spent = meter.create_counter("vehclass.stage.time", unit="s", description="Seconds of all threads by stage.")
    for stage, seconds in figures.stages.items():
        spent.add(seconds, {**of, "stage": stage})
    lasted = meter.create_histogram("vehclass.run.duration", unit="s", description="How long a run took.")
    lasted.record(figures.seconds, {**of, "exit_code": figures.exit_code})
    measuring.force_flush()
    measuring.shutdown()
