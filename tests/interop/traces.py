"""Traces, checked by OpenTelemetry's own package for Python: it reads what the relay sends to a collector.

A push whose first attempt fails, then WeChat's retry of it, then a push that a proxy has begun a trace for.
"""
import time

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK as HAS_REMOTE
from opentelemetry.proto.trace.v1.trace_pb2 import SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK as REMOTE
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from rig import WAIT, Failure, expect, expect_that
from stand import Stand, Tap
from wechat import Account, message, push

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Traces:
    def __init__(self, binary):
        self.stand = Stand(binary)
        self.account = Account("shop", "secure", "/wx")

    def start(self):
        self.collector, self.crm = Tap("collector"), Tap("crm")
        self.crm.failing = 1
        text = f'[telemetry]\notlp = "{self.collector.url}"\nheaders = {{ x-tenant = "blue" }}\nservice_name = "judged"\n'
        text += f'[accounts.shop]\npath = "/wx"\napp_id = "{self.account.app_id}"\ntoken = "{self.account.token}"\nmode = "secure"\n'
        text += f'encoding_aes_key = "{self.account.key}"\n[targets.crm]\nurl = "{self.crm.url}/"\nretry = ["50ms"]\n'
        relay = self.stand.serve(text)
        self.begun = time.time_ns()
        self.push = push(self.account, message("text", Content="one"))
        for _ in range(2):
            expect(relay.post("/wx", self.push).status, 200, "status")
        self.crm.wait_for(lambda request: request.body, 2)
        traced = push(self.account, message("text", Content="two"))
        traced.headers.append(f"traceparent: 00-{TRACE}-{CALLER}-01")  # as a proxy does that has begun a trace
        expect(relay.post("/wx", traced).status, 200, "status")
        self.told = [request.headers for request in self.crm.wait_for(lambda request: request.body, 3)]

    def checks(self):
        yield "opentelemetry-proto of PyPI reads every field of what the collector gets", self.read
        yield "the push, its attempts and WeChat's retry are one trace, and the handler gets the attempt's span", self.one_trace
        yield "names, kinds, times, status and attributes are as OpenTelemetry has them", self.described
        yield "a trace that a push came with is continued", self.continued

    def read(self):
        self.spans = self._spans()
        for request in self.collector.requests:
            expect((request.target, request.headers["content-type"], request.headers["x-tenant"]),
                   ("/v1/traces", "application/x-protobuf", "blue"), "path and headers")
        return f"{len(self.spans)} spans in {len(self.collector.requests)} requests"

    def one_trace(self):
        ours = self._of(self.told[0]["wxrelay-event-id"])
        expect(sorted(span.name for span in ours), ["attempt", "attempt", "push", "push"], "spans of the first event")
        expect(len({span.trace_id for span in ours}), 1, "traces")
        root = [span for span in ours if not span.parent_span_id]
        expect(len(root), 1, "spans without a parent")
        for span in ours:
            expect((len(span.trace_id), len(span.span_id), any(span.trace_id), any(span.span_id)), (16, 8, True, True), "ids")
            expect_that(span is root[0] or span.parent_span_id == root[0].span_id, f"{span.name} is a child of the push")
        expect(len({span.span_id for span in ours}), 4, "different spans")
        attempts = sorted((span for span in ours if span.name == "attempt"), key=lambda span: span.start_time_unix_nano)
        expect([headers["traceparent"] for headers in self.told[:2]],
               [f"00-{span.trace_id.hex()}-{span.span_id.hex()}-01" for span in attempts], "what the handler is told")

    def described(self):
        ours = self._of(self.told[0]["wxrelay-event-id"])
        for span in ours:
            expect_that(self.begun <= span.start_time_unix_nano <= span.end_time_unix_nano <= time.time_ns(), f"times of {span}")
            expect(span.flags & (HAS_REMOTE | REMOTE | 1), HAS_REMOTE | 1, "flags: recorded, no parent elsewhere")
        by_name = lambda name: sorted((span for span in ours if span.name == name), key=lambda span: span.start_time_unix_nano)
        first, again = by_name("push")
        for span, result in ((first, "accepted"), (again, "duplicate")):
            expect((span.kind, span.status.code), (Span.SPAN_KIND_SERVER, Status.STATUS_CODE_UNSET), "kind and status of a push")
            told = attributes(span)
            expect({key: told[key] for key in ("wxrelay.result", "http.request.method", "http.response.status_code", "wxrelay.account")},
                   {"wxrelay.result": result, "http.request.method": "POST", "http.response.status_code": 200, "wxrelay.account": "shop"},
                   "attributes of a push")
        failed, delivered = by_name("attempt")
        for span, code, status, kind in ((failed, 503, Status.STATUS_CODE_ERROR, "503"), (delivered, 204, Status.STATUS_CODE_UNSET, None)):
            told = attributes(span)
            expect((span.kind, span.status.code), (Span.SPAN_KIND_CLIENT, status), "kind and status of an attempt")
            expect((told["http.response.status_code"], told.get("error.type"), told["wxrelay.target"]), (code, kind, "crm"), "attributes of an attempt")

    def continued(self):
        theirs = self._of(self.told[2]["wxrelay-event-id"])
        first, attempt = sorted(theirs, key=lambda span: span.name != "push")
        expect((first.trace_id.hex(), first.parent_span_id.hex()), (TRACE, CALLER), "trace and parent of the push")
        expect(first.flags & REMOTE, REMOTE, "flags: its parent is elsewhere")
        expect((attempt.trace_id, attempt.parent_span_id), (first.trace_id, first.span_id), "trace and parent of the attempt")

    def _of(self, event):
        return [span for span in self.spans if attributes(span)["wxrelay.event_id"] == event]

    def _spans(self):
        """All six, read strictly: no byte that the package does not know."""
        deadline = time.monotonic() + WAIT
        while True:
            spans = []
            for request in list(self.collector.requests):
                read = ExportTraceServiceRequest()
                read.ParseFromString(request.body)
                expect_that(MessageToDict(read), "an empty request")
                expect(len(read.SerializeToString()), len(request.body), "bytes that the package reads and writes again")
                for part in read.resource_spans:
                    expect(attributes(part.resource)["service.name"], "judged", "service.name")
                    expect([scope.scope.name for scope in part.scope_spans], ["wxrelay"], "scopes")
                    spans += [span for scope in part.scope_spans for span in scope.spans]
            if len(spans) >= 6:
                expect(len(spans), 6, "spans")
                return spans
            if time.monotonic() > deadline:
                raise Failure(f"only {len(spans)} spans came")
            time.sleep(0.1)

    def end(self):
        self.stand.end()


def attributes(of):
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in of.attributes}
