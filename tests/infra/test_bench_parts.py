"""The bench measures what it says: clocks, load, bodies, errors, and the whole of it once."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
import pytest

from infra.bench import calls, cpu, load, models, peers, report, rows, suite, tally
from infra.bench.calls import Call, Target
from infra.bench.processes import StartFailed

BURN = (
    "import time, threading\n"
    "def burn(s):\n"
    "    until = time.thread_time() + s\n"
    "    while time.thread_time() < until: pass\n"
    "thread = threading.Thread(target=burn, args=(0.25,)); thread.start(); thread.join()\n"
    "burn(0.25); print('done', flush=True); time.sleep(60)\n"
)
CLIENTS = ["own", *(["wrk"] if shutil.which("wrk") else [])]
FIGURES = tally.Tally(
    requests=10, duration_us=1, connect=0, read=0, write=0, timeout=0, status=0, p50_us=1, p99_us=1
)


@contextlib.contextmanager
def server(
    answer: Callable[[BaseHTTPRequestHandler, bytes], tuple[int, Mapping[str, str], bytes]],
) -> Iterator[str]:
    """Serve `answer` for every request; yields the base url."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def reply(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            status, headers, data = answer(self, body)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_GET = reply

        def log_message(self, format: str, *args: object) -> None:
            """Stay silent."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: object, client_address: object) -> None:
            """Stay silent: a load client leaves in the middle of an answer."""

    with Server(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}"
        finally:
            running.shutdown()
            thread.join()


def ours() -> list[int]:
    return [os.getpid()]


# --- cpu


def test_cpu_clock_counts_a_busy_child_and_its_ended_threads() -> None:
    with subprocess.Popen([sys.executable, "-c", BURN], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        before = cpu.read([child.pid])
        assert child.stdout.readline() == b"done\n"
        used_s = cpu.used_ns(before, cpu.read([child.pid])) / 1e9
        child.kill()
    assert used_s == pytest.approx(0.5, rel=0.2)


def test_cpu_clock_of_an_idle_child_stands_still() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        time.sleep(0.1)
        before = cpu.cpu_ns(child.pid)
        time.sleep(0.2)
        used_ns = cpu.cpu_ns(child.pid) - before
        child.kill()
    assert used_ns < 2e6


def test_a_process_that_ended_spoils_the_measurement() -> None:
    with pytest.raises(cpu.ProcessGone, match="8"):
        cpu.used_ns({7: 10, 8: 10}, {7: 30})


def test_a_process_that_came_counts_in_full() -> None:
    assert cpu.used_ns({7: 10}, {7: 30, 9: 5}) == 25


def test_the_clock_of_a_process_that_is_gone_is_refused() -> None:
    with subprocess.Popen(["true"]) as child:
        child.wait()
    with pytest.raises(cpu.ProcessGone):
        cpu.cpu_ns(child.pid)


def test_tree_holds_children_of_children() -> None:
    script = "import subprocess; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True)"
    script += "\np.wait()"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())
        assert cpu.tree(child.pid) == [child.pid, grandchild]
        assert grandchild in cpu.tree(os.getpid())
        os.kill(grandchild, 9)


def test_memory_of_a_process_grows_by_what_it_touches() -> None:
    before = cpu.pss_bytes(ours())
    held = np.ones(4 << 20)
    assert cpu.pss_bytes(ours()) - before == pytest.approx(held.nbytes, rel=0.2)


# --- load


def test_the_clients_last_line_of_figures_is_read() -> None:
    line = tally.MARK + msgspec.json.encode(FIGURES).decode()
    assert tally.parse(f"Running 1s test\n{line}\n") == FIGURES


def test_errors_of_every_kind_are_added() -> None:
    each = msgspec.structs.replace(FIGURES, connect=1, read=10, write=100, timeout=1000, status=4)
    assert each.errors == 1115


@pytest.mark.parametrize("printed", ["", "Requests/sec: 12", tally.MARK + "{}"])
def test_a_client_that_tells_no_figures_has_failed(printed: str) -> None:
    with pytest.raises((tally.LoadFailed, msgspec.ValidationError)):
        tally.parse(printed)


def test_not_one_answer_is_a_failure() -> None:
    none = msgspec.structs.replace(FIGURES, requests=0)
    with pytest.raises(tally.LoadFailed, match="not one answer"):
        tally.parse(tally.MARK + msgspec.json.encode(none).decode())


@pytest.mark.parametrize("client", CLIENTS)
def test_load_counts_requests_and_the_servers_cpu(client: str) -> None:
    seen: list[tuple[str, str, str, bytes]] = []

    def answer(handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        seen.append((handler.command, handler.path, handler.headers["x-key"], body))
        return 200, {}, b"fine"

    with server(answer) as url:
        call = Call(f"{url}/some/path", headers={"x-key": "a [b] c"}, body=b"\x00\xff\r\n" * 9)
        sample = load.measure(call, clients=2, duration_s=1, pids=ours, client=client)
    assert set(seen) == {("POST", "/some/path", "a [b] c", b"\x00\xff\r\n" * 9)}
    assert sample.errors == 0
    # Each connection may have one answer under way when the client stops counting.
    assert len(seen) - 2 <= sample.requests <= len(seen)
    assert sample.rps == pytest.approx(sample.requests / sample.duration_s)
    assert 0 < sample.p50_ms <= sample.p99_ms < 1000
    assert 10 < sample.cpu_us_per_request < 2e6 / sample.requests


@pytest.mark.parametrize("client", CLIENTS)
def test_every_bad_status_is_an_error(client: str) -> None:
    served = 0

    def answer(_: BaseHTTPRequestHandler, __: bytes) -> tuple[int, dict[str, str], bytes]:
        nonlocal served
        served += 1
        return (503 if served % 2 else 200), {}, b""

    with server(answer) as url:
        call = Call(url, method="GET")
        sample = load.measure(call, clients=1, duration_s=1, pids=ours, client=client)
    assert sample.errors == pytest.approx(sample.requests / 2, abs=2)


@pytest.mark.parametrize("ending", ["sys.stderr.write('script: broken')", "sys.exit(3)"])
def test_figures_of_a_client_that_complains_are_not_believed(
    ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = tally.MARK + msgspec.json.encode(FIGURES).decode()
    script = f"import sys; print({line!r}); {ending}"
    monkeypatch.setattr(load, "own_command", lambda *_: [sys.executable, "-c", script])
    with pytest.raises(tally.LoadFailed, match="failed"):
        load.measure(Call("http://x"), clients=1, duration_s=1, pids=ours, client="own")


@pytest.mark.parametrize("client", CLIENTS)
def test_a_server_that_is_not_there_is_a_failure(client: str) -> None:
    call = Call("http://127.0.0.1:9/")
    with pytest.raises(tally.LoadFailed):
        load.measure(call, clients=1, duration_s=1, pids=ours, client=client)


@pytest.mark.parametrize("client", CLIENTS)
def test_varied_bodies_differ_in_every_request_of_every_run(client: str) -> None:
    bodies: list[bytes] = []

    def answer(_: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        bodies.append(body)
        return 200, {}, b""

    array = np.linspace(-3, 5, 16, dtype=np.float32)[None]
    with server(answer) as url:
        target = Target("test", url, ours)
        call = calls.oip_call(target, "m", "x", array, varied=True)
        for _ in range(2):
            load.measure(call, clients=2, duration_s=1, pids=ours, client=client)
    assert len(bodies) > 50
    assert len(set(bodies)) == len(bodies)
    start = len(call.body) - array.nbytes
    assert {body[:start] for body in bodies} == {call.body[:start]}
    tensors = np.frombuffer(b"".join(body[start:] for body in bodies), "<f4").reshape(-1, 16)
    np.testing.assert_array_equal(tensors[:, 3:], np.repeat(array[:, 3:], len(bodies), axis=0))
    np.testing.assert_allclose(tensors, np.repeat(array, len(bodies), axis=0), rtol=0.01)


def test_a_header_that_would_break_the_script_is_refused() -> None:
    for value in ("a]==]b", "a\nb", "a\rb"):
        with pytest.raises(ValueError, match="header"):
            load.lua(Call("http://x", headers={"x-key": value}), Path("body"))


def test_varied_integers_stay_bytes() -> None:
    array = np.full((1, 8), 256, dtype=np.int32)
    assert calls.varied_offsets(array, 100) == (100, 104, 108, 112, 116, 120)


def test_a_tensor_too_small_to_vary_is_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        calls.varied_offsets(np.zeros(2, np.float32), 0)


def test_a_probe_refuses_what_is_not_200() -> None:
    with (
        server(lambda *_: (404, {}, b"no such model")) as url,
        pytest.raises(calls.BadTarget, match=r"404 .*no such model"),
    ):
        calls.probe(Call(url))


# --- models and peers


@pytest.mark.parametrize(
    ("write", "shape"),
    [(models.write_mlp, models.MLP_SHAPE), (models.write_image, models.IMAGE_SHAPE)],
)
def test_models_take_any_number_of_rows(
    write: Callable[[Path], None], shape: tuple[int, ...], tmp_path: Path
) -> None:
    write(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    rows_in = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    together = session.run(None, {models.INPUT: rows_in})[0]
    alone = [session.run(None, {models.INPUT: row[None]})[0][0] for row in rows_in]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert together.shape == (3, 10)


def test_fastapi_peer_answers_what_the_model_answers(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    models.write_mlp(model)
    array = np.random.default_rng(0).normal(size=(1, 16)).astype(np.float32)
    with peers.fastapi(model, threads=0, spinning=False) as target:
        pids = target.pids()
        answer = calls.tensor_of(calls.probe(calls.raw_call(target, "/infer", array, varied=True)))
    wanted = onnxruntime.InferenceSession(model).run(None, {models.INPUT: array})[0][0]
    np.testing.assert_allclose(answer, wanted, atol=1e-5)
    assert pids
    with pytest.raises(cpu.ProcessGone):
        cpu.read(pids)


def test_pydantic_peer_answers_what_the_model_answers(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    models.write_mlp(model)
    array = np.random.default_rng(0).normal(size=(1, 16)).astype(np.float32)
    with peers.pydantic(model, threads=0, spinning=False) as target:
        answer = calls.tensor_of(calls.probe(calls.json_call(target, "/infer", "x", array)))
    wanted = onnxruntime.InferenceSession(model).run(None, {models.INPUT: array})[0][0]
    np.testing.assert_allclose(answer, wanted, atol=1e-5)


def test_pytriton_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match="pytriton"), peers.pytriton(sys.executable, tmp_path):
        pass


def test_hello_peer_answers_hello() -> None:
    with peers.hello() as target:
        assert calls.probe(Call(f"{target.base_url}/", method="GET")).body == b"hello"


def test_bare_loop_tells_the_cost_of_each_batch_size(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    models.write_image(model)
    rows_in = np.ones((2, *models.IMAGE_SHAPE), np.float32)
    costs = peers.bare_loop_us(model, rows_in, [1, 16], seconds=0.2, threads=1, spinning=False)
    assert costs.keys() == {1, 16}
    assert costs[16] > 4 * costs[1] > 0


# --- rows and report


def test_ratio_of_rounds_that_do_not_match_is_refused() -> None:
    with pytest.raises(ValueError, match="2 and 1"):
        rows.ratio([1.0, 2.0], [1.0])


def test_figure_is_kept_by_its_minima_and_spoilt_by_errors() -> None:
    spread = rows.ratio([3.0, 2.0], [2.0, 2.0])
    kept = report.figure("f", spread, 1.2, ours=2.0, theirs=2.0, sample_unit="µs")
    assert (kept.value, kept.low, kept.high, kept.ok) == (1.0, 1.0, 1.5, True)
    assert not msgspec.structs.replace(kept, note="3 errors").ok
    assert not msgspec.structs.replace(kept, limit=0.9).ok


def test_rows_are_summed_over_the_batches_that_ran() -> None:
    assert rows.bare_us_per_row({1: 2, 4: 1}, {1: 100.0, 4: 280.0}) == 80.0


def test_an_unknown_row_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"\['mpl-1'\]; there are idle, mlp-64"):
        suite.BenchConfig(only=("mpl-1",))


class FakeStack:
    """Answers Open Inference Protocol calls inside this very process."""

    ready_s = 1.5

    def __init__(self) -> None:
        self.sessions: dict[str, onnxruntime.InferenceSession] = {}
        self.cached: dict[str, bool] = {}
        self.answers: dict[bytes, bytes] = {}
        self.ran = 0
        self.target = Target("tidepool", "", ours, {"Authorization": "Bearer secret"})

    def publish(self, endpoint: str, model: Path, *, cache: bool) -> None:
        self.sessions[endpoint] = onnxruntime.InferenceSession(model)
        self.cached[endpoint] = cache

    def tier_pids(self) -> Sequence[int]:
        return ours()

    def batches(self, endpoint: str) -> Mapping[int, int]:
        return {1: self.ran}

    def answer(
        self, handler: BaseHTTPRequestHandler, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        found = re.fullmatch(r"/v2/models/([a-z-]+)/infer", handler.path)
        assert found
        assert handler.headers["Authorization"] == "Bearer secret"
        endpoint = found[1]
        header_bytes = int(handler.headers["Inference-Header-Content-Length"])
        only = msgspec.json.decode(body[:header_bytes])["inputs"][0]
        hit = self.cached[endpoint] and body in self.answers
        if not hit:
            dtype = {"FP32": "<f4", "INT32": "<i4"}[only["datatype"]]
            tensor = np.frombuffer(body[header_bytes:], dtype).reshape(only["shape"])
            self.answers[body] = (
                self.sessions[endpoint].run(None, {only["name"]: tensor})[0].tobytes()
            )
            self.ran += 1
        headers = {
            "Cache-Status": "tidepool; hit" if hit else "tidepool; fwd=uri-miss",
            "Inference-Header-Content-Length": "2",
        }
        return 200, headers, b"{}" + self.answers[body]


@contextlib.contextmanager
def fake_stack() -> Iterator[FakeStack]:
    stack = FakeStack()
    with server(stack.answer) as url:
        stack.target = Target("tidepool", url, ours, stack.target.headers)
        yield stack


def test_bench_measures_a_stack_against_its_peers() -> None:
    told: list[str] = []
    outcome = suite.run(
        suite.BenchConfig(
            rounds=1,
            duration_s=1,
            only=("idle", "mlp-1", "hop"),
            open_stack=fake_stack,
            hop=lambda body_bytes: body_bytes / 100,
            progress=told.append,
        )
    )
    figures = {figure.name: figure for figure in outcome.figures}
    assert list(figures) == [
        "idle-memory",
        "ready",
        "mlp-1-p50/fastapi",
        "hop-64-bytes",
        "hop-602112-bytes",
    ]
    assert [m.side for m in outcome.samples] == ["tidepool mlp", "fastapi mlp"]
    assert all(m.sample.errors == 0 for m in outcome.samples)
    assert figures["ready"].value == 1.5
    assert figures["hop-64-bytes"].ok
    assert not figures["hop-602112-bytes"].ok
    assert not outcome.ok
    assert len(told) == 2
    assert msgspec.json.decode(report.to_json(outcome), type=report.Report) == outcome
    assert report.lines(outcome)[1].split("\t")[0] == "idle-memory"
    assert report.table(outcome).row_count == 5


def test_a_stack_with_wrong_answers_is_not_measured() -> None:
    class Wrong(FakeStack):
        def answer(
            self, handler: BaseHTTPRequestHandler, body: bytes
        ) -> tuple[int, dict[str, str], bytes]:
            return 200, {}, np.zeros(10, np.float32).tobytes()

    @contextlib.contextmanager
    def wrong_stack() -> Iterator[Wrong]:
        stack = Wrong()
        with server(stack.answer) as url:
            stack.target = Target("tidepool", url, ours)
            yield stack

    config = suite.BenchConfig(rounds=1, duration_s=1, only=("mlp-1",), open_stack=wrong_stack)
    with pytest.raises(calls.BadTarget, match="answers"):
        suite.run(config)


@pytest.mark.slow
def test_bench_measures_every_row() -> None:
    outcome = suite.run(suite.BenchConfig(rounds=1, duration_s=1, open_stack=fake_stack))
    wanted = [c.name for row in rows.ROWS if not row.of_more_peers for c in row.comparisons]
    names = [figure.name for figure in outcome.figures]
    assert names == ["idle-memory", "ready", *wanted, "magika-8/onnxruntime"]
    assert outcome.skipped == ("hop: nothing to measure it with was given",)
