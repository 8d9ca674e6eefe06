"""How people hear of a run: posts, mails, figures, JSON lines; and that none of it can fail the run or say a secret."""

import gzip
import json
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import SAMPLE, Answer
from vehclass.errors import UsageError
from vehclass.notices import Notice, NoticeOptions, NotSent, mail, webhook

CANARY = "canary5ecret"
NOTICE = Notice(True, "uploads: 3 classified", ("first <b>", "second"), {"exit_code": 0})


class Hook:
    """A server that takes posts, and answers what it is told to."""

    def __init__(self) -> None:
        self.posts: list[dict[str, Any]] = []
        self.answers: list[tuple[int, dict[str, str]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.posts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                status, headers = outer.answers.pop(0) if outer.answers else (204, {})
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *words: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/{CANARY}"


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    """Lets a server answer until the block ends."""
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()
    with serving(made.server):
        yield made


@contextmanager
def mail_server(refuse: bool = False) -> Iterator[tuple[int, list[str]]]:
    """A server that takes mail in the clear; yields its port and what it was sent."""
    mails: list[str] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 here\r\n")
            for raw in self.rfile:
                word = raw.split()[0].upper() if raw.split() else b""
                if word == b"DATA":
                    self.wfile.write(b"354 go on\r\n")
                    lines = []
                    for line in self.rfile:
                        if line == b".\r\n":
                            break
                        lines.append(line.decode())
                    mails.append("".join(lines))
                elif word == b"QUIT":
                    self.wfile.write(b"221 bye\r\n")
                    return
                self.wfile.write(b"550 no\r\n" if refuse and word == b"RCPT" else b"250 fine\r\n")

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    with serving(server):
        yield server.server_address[1], mails


@pytest.fixture
def photos(drawn: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "uploads"
    folder.mkdir()
    for file in sorted(drawn.rglob("*.jpg"))[:6]:
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def job(photos: Path, *words: str) -> list[str]:
    return ["classify-batch", "-c", str(photos), "-m", str(SAMPLE), "--store", "sqlite:///r.db", *words]


class TestRuns:
    def test_a_run_posts_how_it_ended(self, photos: Path, hook: Hook, vehclass: Callable[..., Answer]) -> None:
        done = vehclass(*job(photos, "--notify", "always"), VEHCLASS_WEBHOOK=hook.url)
        assert done.code in (0, 3), done.err
        (post,) = hook.posts
        assert (post["good"], post["exit_code"], post["runs"][0]["listed"]) == (True, done.code, 6)
        assert "uploads" in post["title"]
        assert CANARY not in done.out + done.err

    def test_a_good_run_is_not_told_unless_asked_for(
        self, photos: Path, hook: Hook, vehclass: Callable[..., Answer]
    ) -> None:
        assert vehclass(*job(photos), VEHCLASS_WEBHOOK=hook.url).code in (0, 3)
        assert hook.posts == []

    def test_a_failed_run_is_told(
        self, photos: Path, hook: Hook, vehclass: Callable[..., Answer], tmp_path: Path
    ) -> None:
        url = "cosmos://127.0.0.1:9/results"
        done = vehclass(
            *job(photos)[:5],
            "--store",
            url,
            VEHCLASS_WEBHOOK=hook.url,
            AZURE_COSMOS_KEY="a2V5",
            VEHCLASS_STORE_WAIT="1",
        )
        assert done.code == 5, done.err
        (post,) = hook.posts
        assert (post["good"], post["exit_code"]) == (False, 5)
        assert "127.0.0.1:9" in post["message"]

    def test_never_is_never(self, photos: Path, hook: Hook, vehclass: Callable[..., Answer]) -> None:
        words = (*job(photos)[:5], "--store", "sqlite:////nowhere/at/all/r.db", "--notify", "never")
        assert vehclass(*words, VEHCLASS_WEBHOOK=hook.url).code != 0
        assert hook.posts == []

    def test_who_mistyped_knows(self, hook: Hook, vehclass: Callable[..., Answer]) -> None:
        assert vehclass(*job(Path("nowhere")), VEHCLASS_WEBHOOK=hook.url).code == 2
        assert hook.posts == []

    def test_a_post_that_fails_does_not_fail_the_run(
        self, photos: Path, hook: Hook, vehclass: Callable[..., Answer]
    ) -> None:
        hook.answers = [(403, {})]
        done = vehclass(*job(photos, "--notify", "always"), VEHCLASS_WEBHOOK=hook.url)
        assert done.code in (0, 3)
        assert "403" in done.err
        assert CANARY not in done.out + done.err

    @pytest.mark.parametrize("address", [f"http://example.org/{CANARY}", f"ftp://x/{CANARY}", CANARY])
    def test_an_address_in_the_clear_stops_before_any_work(
        self, photos: Path, address: str, vehclass: Callable[..., Answer], tmp_path: Path
    ) -> None:
        done = vehclass(*job(photos), VEHCLASS_WEBHOOK=address)
        assert (done.code, CANARY in done.err) == (2, False)
        assert not (tmp_path / "r.db").exists()

    def test_a_run_sends_mail(self, photos: Path, vehclass: Callable[..., Answer]) -> None:
        with mail_server() as (port, mails):
            done = vehclass(
                *job(photos, "--notify", "always"),
                VEHCLASS_MAIL_TO="ops@example.org,night@example.org",
                VEHCLASS_MAIL_FROM="vehclass@example.org",
                VEHCLASS_SMTP_HOST="127.0.0.1",
                VEHCLASS_SMTP_PORT=str(port),
                VEHCLASS_SMTP_SECURITY="none",
            )
        assert done.code in (0, 3), done.err
        assert "Subject: vehclass: uploads: " in mails[0]
        assert "ops@example.org, night@example.org" in mails[0]

    def test_a_scheduler_tells_of_its_runs_once(self, photos: Path, hook: Hook, tmp_path: Path) -> None:
        import signal
        import subprocess

        from tests.conftest import VEHCLASS, clean_environment

        words = [*VEHCLASS, "schedule", "--every", "6h", "--run-now", "--", *job(photos, "--notify", "always")[1:]]
        environment = clean_environment(VEHCLASS_WEBHOOK=hook.url)
        with subprocess.Popen(words, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as process:
            for _ in range(300):
                if hook.posts:
                    break
                time.sleep(0.1)
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
        (post,) = hook.posts
        assert (post["good"], post["schedule"], post["night"]["tries"]) == (True, "uploads", 1)

    def test_lines_are_json_with_the_runs_id(self, photos: Path, vehclass: Callable[..., Answer]) -> None:
        (photos / "broken.jpg").write_bytes(b"nothing")
        done = vehclass(
            *job(photos, "--log-format", "json", "--json", "--notify", "always"),
            VEHCLASS_WEBHOOK="http://127.0.0.1:9/x",
        )
        lines = [json.loads(line) for line in done.err.splitlines()]
        assert lines
        assert {line["run"] for line in lines} == {done.json["run_id"]}
        assert {"time", "level", "logger", "message"} <= set(lines[-1])


def samples(path: Path) -> dict[tuple[str, str], float]:
    return {
        (one.name, one.labels.get("outcome") or one.labels.get("stage") or ""): one.value
        for family in text_string_to_metric_families(path.read_text())
        for one in family.samples
    }


class TestFigures:
    def test_a_run_leaves_its_figures(self, photos: Path, tmp_path: Path, vehclass: Callable[..., Answer]) -> None:
        (photos / "broken.jpg").write_bytes(b"nothing")
        began = time.time()
        assert vehclass(*job(photos, "--metrics-file", "v.prom")).code == 3
        found = samples(tmp_path / "v.prom")
        assert found["vehclass_images", "classified"] + found["vehclass_images", "failed"] == 7
        assert found["vehclass_run_exit_code", ""] == 3
        assert began - 1 < found["vehclass_last_success_timestamp_seconds", ""] < time.time() + 1
        assert found["vehclass_stage_seconds", "decode"] > 0
        assert ("vehclass_oldest_unprocessed_timestamp_seconds", "") not in found
        assert [file.name for file in tmp_path.glob("v.prom*")] == ["v.prom"]

    def test_what_a_limit_leaves_is_told_by_its_oldest(
        self, photos: Path, tmp_path: Path, vehclass: Callable[..., Answer]
    ) -> None:
        import os

        for number, file in enumerate(sorted(photos.iterdir())):
            os.utime(file, (1_700_000_000 + number, 1_700_000_000 + number))
        vehclass(*job(photos, "--metrics-file", "v.prom", "--limit", "2"))
        done = vehclass("results", "list", "--json", "--store", "sqlite:///r.db").json
        left = {file.name: file.stat().st_mtime for file in photos.iterdir()}
        for row in done:
            left.pop(row["name"], None)
        assert samples(tmp_path / "v.prom")["vehclass_oldest_unprocessed_timestamp_seconds", ""] == min(left.values())

    def test_a_failed_run_remembers_the_last_success(
        self, photos: Path, tmp_path: Path, vehclass: Callable[..., Answer]
    ) -> None:
        vehclass(*job(photos, "--metrics-file", "v.prom"))
        good = samples(tmp_path / "v.prom")["vehclass_last_success_timestamp_seconds", ""]
        (photos.parent / "r.db").write_bytes(b"not a database, and longer than its header" * 10)
        assert vehclass(*job(photos, "--metrics-file", "v.prom")).code == 2
        found = samples(tmp_path / "v.prom")
        assert (found["vehclass_run_exit_code", ""], found["vehclass_last_success_timestamp_seconds", ""]) == (2, good)

    def test_a_place_that_cannot_be_written_stops_before_any_work(
        self, photos: Path, tmp_path: Path, vehclass: Callable[..., Answer]
    ) -> None:
        assert vehclass(*job(photos, "--metrics-file", "/nowhere/v.prom")).code == 2
        assert not (tmp_path / "r.db").exists()


class TestWebhook:
    def test_slack_and_teams_get_what_they_read(self) -> None:
        slack = webhook.as_json(NOTICE, NoticeOptions("https://hooks.slack.com/services/x"))
        assert slack["text"].splitlines()[1] == "first &lt;b&gt;"
        teams = webhook.as_json(NOTICE, NoticeOptions("https://a.webhook.office.com/x"))
        assert teams["attachments"][0]["content"]["body"][1]["text"] == "first <b>"
        assert webhook.as_json(NOTICE, NoticeOptions("https://example.org/x"))["title"] == NOTICE.title
        assert "text" in webhook.as_json(NOTICE, NoticeOptions("https://example.org/x", webhook_format="slack"))

    def test_a_busy_server_is_asked_again_when_it_says(self, hook: Hook) -> None:
        hook.answers = [(503, {"Retry-After": "0.2"}), (429, {"Retry-After": "0.1"})]
        began = time.monotonic()
        webhook.send(NOTICE, NoticeOptions(hook.url))
        assert len(hook.posts) == 3
        assert 0.3 <= time.monotonic() - began < 5

    def test_a_hint_of_years_is_not_believed(self) -> None:
        assert webhook._hint("1000000000") == webhook.LONGEST_HINT

    def test_what_will_not_change_is_not_asked_again(self, hook: Hook) -> None:
        hook.answers = [(404, {})]
        with pytest.raises(NotSent, match="404"):
            webhook.send(NOTICE, NoticeOptions(hook.url))
        assert len(hook.posts) == 1

    def test_a_redirect_is_not_followed(self, hook: Hook) -> None:
        hook.answers = [(307, {"Location": f"{hook.url}/elsewhere"})]
        with pytest.raises(NotSent, match="307"):
            webhook.send(NOTICE, NoticeOptions(hook.url))
        assert len(hook.posts) == 1

    def test_nobody_there_is_said_without_the_address(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(webhook, "_pause", lambda state: 0.0)
        with pytest.raises(NotSent) as caught:
            webhook.send(NOTICE, NoticeOptions(f"http://127.0.0.1:9/{CANARY}"))
        assert CANARY not in str(caught.value)


class TestMail:
    OPTIONS: ClassVar[dict[str, Any]] = {
        "mail_to": ("ops@example.org",),
        "mail_from": "v@example.org",
        "smtp_host": "127.0.0.1",
    }

    def test_no_encryption_no_mail(self) -> None:
        """The server offers no STARTTLS: nothing is sent unless that is turned off by name."""
        with mail_server() as (port, mails):
            with pytest.raises(NotSent):
                mail.send(NOTICE, NoticeOptions(**self.OPTIONS, smtp_port=port))
            assert mails == []
            mail.send(NOTICE, NoticeOptions(**self.OPTIONS, smtp_port=port, smtp_security="none"))
            assert len(mails) == 1

    def test_a_title_with_line_breaks_is_one_header(self) -> None:
        with mail_server() as (port, mails):
            odd = Notice(False, "a\r\nBcc: x@example.org", ("b",))
            mail.send(odd, NoticeOptions(**self.OPTIONS, smtp_port=port, smtp_security="none"))
        head = mails[0].split("\r\n\r\n")[0].split("\n\n")[0]
        assert "\nBcc:" not in head

    def test_a_refusal_is_said(self) -> None:
        with mail_server(refuse=True) as (port, _):
            with pytest.raises(NotSent, match="SMTPRecipientsRefused"):
                mail.send(NOTICE, NoticeOptions(**self.OPTIONS, smtp_port=port, smtp_security="none"))

    @pytest.mark.parametrize(
        "wrong",
        [
            {"mail_from": None},
            {"smtp_host": None},
            {"mail_to": ("nobody",)},
            {"mail_to": ("a@b\nBcc: c@d",)},
            {"smtp_password": "x"},
            {"smtp_user": "u", "smtp_password": "x", "smtp_security": "none"},
        ],
    )
    def test_what_can_never_be_sent(self, wrong: dict[str, Any]) -> None:
        mail.check(NoticeOptions(**self.OPTIONS))
        with pytest.raises(UsageError):
            mail.check(NoticeOptions(**{**self.OPTIONS, **wrong}))


class Collector:
    """A server that takes traces and figures as OpenTelemetry's protocol has them."""

    def __init__(self) -> None:
        self.bodies: dict[str, list[bytes]] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    data = gzip.decompress(data)
                outer.bodies.setdefault(self.path, []).append(data)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *words: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    with serving(made.server):
        yield made


class TestCollector:
    def test_a_run_is_a_span_with_its_figures(
        self, photos: Path, collector: Collector, vehclass: Callable[..., Answer]
    ) -> None:
        from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        done = vehclass(
            *job(photos),
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            OTEL_RESOURCE_ATTRIBUTES="deployment.environment=test",
        )
        assert done.code in (0, 3), done.err
        (traces,) = collector.bodies["/v1/traces"]
        (resource,) = ExportTraceServiceRequest.FromString(traces).resource_spans
        told = {one.key: one.value.string_value for one in resource.resource.attributes}
        assert (told["service.name"], told["deployment.environment"]) == ("vehclass", "test")
        (span,) = resource.scope_spans[0].spans
        assert (span.name, span.status.code) == ("vehclass classify-batch", 0)
        assert 0 < span.end_time_unix_nano - span.start_time_unix_nano < 60e9
        (metrics,) = collector.bodies["/v1/metrics"]
        found = ExportMetricsServiceRequest.FromString(metrics).resource_metrics[0].scope_metrics[0].metrics
        by_name = {one.name: one for one in found}
        outcomes = {
            next(a.value.string_value for a in point.attributes if a.key == "outcome"): point.as_int
            for point in by_name["vehclass.images"].sum.data_points
        }
        assert outcomes["classified"] + outcomes["failed"] == 6
        assert {"vehclass.stage.time", "vehclass.run.duration"} <= set(by_name)

    def test_a_failed_run_is_a_span_that_says_why(self, collector: Collector, vehclass: Callable[..., Answer]) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        vehclass(*job(Path("nowhere")), OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
        span = (
            ExportTraceServiceRequest.FromString(collector.bodies["/v1/traces"][0])
            .resource_spans[0]
            .scope_spans[0]
            .spans[0]
        )
        assert (span.status.code, "nowhere" in span.status.message) == (2, True)

    def test_off_is_off_and_nobody_there_is_no_failure(
        self, photos: Path, collector: Collector, vehclass: Callable[..., Answer]
    ) -> None:
        off = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SDK_DISABLED": "true"}
        assert vehclass(*job(photos), **off).code in (0, 3)
        assert collector.bodies == {}
        began = time.monotonic()
        away = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_TIMEOUT": "3"}
        done = vehclass(*job(photos, "--full"), **away)
        assert (done.code, "Traceback" in done.err) == (0, False), done.err
        assert time.monotonic() - began < 30
