"""Every profile at Go's URLs: headers and errors to the byte, bytes every client takes."""

import asyncio
import gc
import json
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import scrapers
from asking import KEY, SETTINGS, Ask, FakeClock, asgi_inner, ask_asgi, bearer, token

from stroboscope import do
from stroboscope._core import engine
from stroboscope.auth.pace import BURST, PER_SECOND, TOKENS_CAP, Pace
from stroboscope.auth.tokens import Tokens
from stroboscope.endpoints.profiles import NAMES
from stroboscope.endpoints.snapshots import SHARED_S, Snapshots
from stroboscope.errors import Throttled
from stroboscope.formats import text
from stroboscope.formats.pprof import encode, prune
from stroboscope.formats.pprof_reader import decode
from stroboscope.formats.profile import Frame, Profile, Sample, ValueType
from stroboscope.integrations import asgi
from stroboscope.settings import Settings

TYPES = {
    "profile": ["samples/count", "cpu/nanoseconds"],
    "heap": [
        *("alloc_objects/count", "alloc_space/bytes"),
        *("inuse_objects/count", "inuse_space/bytes"),
    ],
    "mutex": ["contentions/count", "delay/nanoseconds"],
    "goroutine": ["goroutine/count"],
    "threadcreate": ["threadcreate/count"],
    "wall": ["wall/nanoseconds"],
}
TYPES["allocs"], TYPES["block"] = TYPES["heap"], TYPES["mutex"]


def headers() -> dict[str, str]:
    return bearer(token("profile"))


@pytest.mark.parametrize("name", sorted(TYPES))
def test_h49_profiles_are_what_scrapers_take(ask: Ask, name: str) -> None:
    """Content type, disposition, sample types in order, and every rule of theirs."""
    answer = ask(
        f"/debug/pprof/{name}?{'seconds=0.1' if name == 'profile' else ''}", headers()
    )

    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Content-Disposition"] == f'attachment; filename="{name}"'
    message = scrapers.check(answer.body)
    strings = message.string_table
    types = [f"{strings[t.type]}/{strings[t.unit]}" for t in message.sample_type]
    assert types == TYPES[name]
    if name == "allocs":
        assert strings[message.default_sample_type] == "alloc_space"
    why = {"heap": "heap: off", "mutex": "nothing is counted"}
    if name in why:
        assert any(why[name] in strings[c] for c in message.comment)


@pytest.mark.parametrize("name", NAMES)
def test_h49_differences_follow_gos_rules(ask: Ask, name: str) -> None:
    """`seconds` gives a difference; garbage and `debug` beside it are Go's 400."""
    path = f"/debug/pprof/{name}"
    answer = ask(f"{path}?seconds=0.1", headers())

    assert (
        answer.headers["Content-Disposition"] == f'attachment; filename="{name}-delta"'
    )
    assert scrapers.check(answer.body, is_delta=True).duration_nanos >= 1e8
    for bad in ("0", "-1", "x", "nan", "1e309"):
        refused = ask(f"{path}?seconds={bad}", headers())
        assert refused.status == 400
        assert refused.body == (
            b'invalid value for "seconds" - must be a positive integer\n'
        )
        assert refused.headers["X-Go-Pprof"] == "1"
    both = ask(f"{path}?seconds=1&debug=1", headers())
    assert both.body == b"seconds and debug params are incompatible\n"


@pytest.mark.parametrize("name", NAMES)
def test_h49_text_forms_begin_as_gos_do(ask: Ask, name: str) -> None:
    """`debug=1` is text, shown and not downloaded."""
    answer = ask(f"/debug/pprof/{name}?debug=1", headers())

    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert "Content-Disposition" not in answer.headers
    heads = {
        "goroutine": b"goroutine profile: total ",
        "threadcreate": b"threadcreate profile: total ",
        "heap": b"heap profile: ",
        "allocs": b"heap profile: ",
        "mutex": b"--- mutex:\ncycles/second=",
        "block": b"--- contention:\ncycles/second=",
    }
    assert answer.body.startswith(heads[name])


def test_stacks_show_threads_and_tasks_with_their_labels() -> None:
    """Over ASGI: this request's loop, its tasks and their labels, and every thread."""
    app = asgi.Stroboscope(asgi_inner, Settings(keys=(KEY,), service="shop"))
    began, done = threading.Event(), threading.Event()

    def waits_in_a_thread() -> None:
        with do(role="batch"):
            began.set()
            done.wait(30)

    async def waits_in_a_task() -> None:
        with do(role="task"):
            await asyncio.sleep(30)

    async def main() -> str:
        import httpx

        task = asyncio.create_task(waits_in_a_task())
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://127.0.0.1"
        ) as client:
            await asyncio.sleep(0.05)
            answer = await client.get("/debug/stacks", headers=headers())
            profile = await client.get("/debug/pprof/goroutine", headers=headers())
        task.cancel()
        message = scrapers.check(profile.content)
        assert {"kind", "role", "task", "batch"} <= set(message.string_table)
        return answer.text

    thread = threading.Thread(target=waits_in_a_thread)
    thread.start()
    began.wait(5)
    try:
        text = asyncio.run(main())
    finally:
        done.set()
        thread.join()

    blocks = text.split("\n\n")
    (task,) = [b for b in blocks if "waits_in_a_task" in b]
    assert task.startswith("task")
    assert "role=task" in task.splitlines()[0]
    (batch,) = [b for b in blocks if "waits_in_a_thread" in b]
    assert "role=batch" in batch.splitlines()[0]
    ours = [
        b for b in blocks if b.startswith("thread") and "stroboscope/endpoints/" in b
    ]
    assert ours == [], "our own threads are not shown"


def test_h23_output_is_bounded() -> None:
    """Deep stacks, huge names and many samples are cut, and say so; totals stay."""
    cpu = ValueType("cpu", "nanoseconds")
    deep = tuple(Frame("a.py", "f" * 10**6, 1, i) for i in range(400))
    many = [Sample((Frame("b.py", f"g{i}", 1, 1),), (i + 1,)) for i in range(20_000)]
    whole = Profile((cpu,), [Sample(deep, (5,)), *many], cpu, 1)

    body = encode(prune(whole))
    message = scrapers.check(body)

    assert decode(body).total() == whole.total()
    assert any("summed up" in message.string_table[c] for c in message.comment)


@pytest.mark.parametrize(
    ("path", "accept"),
    [
        ("/debug/pprof/goroutine?debug=2", "*/*"),
        ("/debug/pprof/goroutine?debug=1", "*/*"),
        ("/debug/stacks", "text/plain"),
        ("/debug/stacks", "application/json"),
    ],
)
def test_h23_texts_are_bounded(
    path: str, accept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand deep tasks come to no gigabyte, in any form, and it is said."""
    monkeypatch.setattr(text, "BYTES_CAP", 100)
    answer = ask_asgi(path, headers() | {"Accept": accept})

    assert answer.status == 200
    assert b"[truncated]" in answer.body
    assert answer.body.count(b" more") == 1
    if accept == "application/json":
        assert json.loads(answer.body)[-1]["kind"] == "[truncated]"


def test_h22_equal_snapshots_at_once_are_one_walk() -> None:
    """Fifty at once: at most two walks, an answer or a 429 each, the pool free after."""
    app = asgi.Stroboscope(asgi_inner, Settings(keys=(KEY,), service="shop"))
    assert app.surface is not None
    snapshots = app.surface.desk.snapshots

    async def main() -> list[int]:
        import httpx

        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://127.0.0.1"
        ) as client:
            asked = [
                client.get(path, headers=headers())
                for _ in range(25)
                for path in ("/debug/pprof/goroutine", "/debug/stacks")
            ]
            return [a.status_code for a in await asyncio.gather(*asked)]

    statuses = asyncio.run(main())

    assert set(statuses) <= {200, 429}
    assert statuses.count(200) >= 10
    assert 1 <= snapshots.walks <= 2
    time.sleep(1.2)
    assert snapshots._shared is None, "kept no longer than it is shared"
    again = ask_asgi("/debug/pprof/goroutine", headers(), app=app)
    assert again.status == 200


def test_h22_a_snapshot_that_has_to_be_new_is() -> None:
    """A difference takes two walks of its own, however close they are."""
    taken: list[int] = []

    def take() -> list[Any]:
        taken.append(len(taken))
        return [len(taken)]

    clock = FakeClock()
    snapshots = Snapshots(take, clock)

    assert snapshots.get() == snapshots.get() == [1]
    clock.now_s += 0.01
    assert snapshots.get(is_fresh=True) == [2]
    clock.now_s += SHARED_S + 0.01
    assert snapshots.get() == [3]


def test_h22_a_token_has_a_pace() -> None:
    """A burst, then so many a second; another token is not slowed; the table is
    bounded."""
    clock = FakeClock()
    pace = Pace(clock)
    for _ in range(BURST):
        pace.check("a")
    with pytest.raises(Throttled) as refused:
        pace.check("a")
    pace.check("b")
    clock.now_s += 1
    for _ in range(int(PER_SECOND)):
        pace.check("a")
    with pytest.raises(Throttled):
        pace.check("a")
    for i in range(2 * TOKENS_CAP):
        pace.check(str(i))

    assert refused.value.retry_after_s == 1
    assert pace.refused == 2
    assert len(pace) == TOKENS_CAP


def test_h22_too_fast_is_429_over_http() -> None:
    """With a wait in whole seconds, and nothing of the token."""
    app: Any = asgi.Stroboscope(asgi_inner, Settings(keys=(KEY,), service="shop"))
    text = Tokens(SETTINGS).mint(["profile"], 60)
    number = Tokens(SETTINGS).verify(text).token_id
    for _ in range(BURST):
        app.surface.desk.gate.pace.check(number)

    answer = ask_asgi("/debug/stacks", {"Authorization": f"Bearer {text}"}, app=app)

    assert (answer.status, answer.body) == (429, b"too many requests\n")
    assert answer.headers["Retry-After"] == "1"


def test_symbols_of_profiles_given_out_are_known(ask: Ask) -> None:
    """`symbol` names what a profile of this surface held, by GET and POST."""
    app: Any = asgi.Stroboscope(asgi_inner, Settings(keys=(KEY,), service="shop"))
    body = ask_asgi("/debug/pprof/goroutine", headers(), app=app).body
    address = scrapers.check(body).location[0].address

    answer = ask_asgi(f"/debug/pprof/symbol?{address:#x}+0x1", headers(), app=app)

    assert answer.body.startswith(b"num_symbols: 1\n")
    assert f"{address:#x} ".encode() in answer.body
    assert ask("/debug/pprof/symbol", headers()).body == b"num_symbols: 1\n"
    assert ask("/debug/pprof/cmdline", headers()).status == 404


@pytest.mark.slow
def test_h49_go_tool_pprof_reads_every_profile(
    go_pprof: list[str], tmp_path: Path
) -> None:
    """`-top` of each by the real tool, from files; an empty one is no error."""
    for name in sorted(TYPES):
        query = "seconds=0.2" if name == "profile" else ""
        body = ask_asgi(f"/debug/pprof/{name}?{query}", headers()).body
        (tmp_path / name).write_bytes(body)
    began = time.monotonic()
    for name in sorted(TYPES):
        done = subprocess.run(
            [*go_pprof, "-top", str(tmp_path / name)],
            capture_output=True,
            text=True,
            timeout=110,
        )
        assert done.returncode == 0, done.stderr
        assert "symbolization failed" not in done.stderr
    assert time.monotonic() - began < 100


def test_h32_a_hundred_thousand_strange_requests_leave_no_trace() -> None:
    """Random paths, verbs and tenants: the table stays below its cap, memory flat."""
    from stroboscope.labels import TABLE
    from stroboscope.middleware.observed import Labeller, Observed

    labeller = Labeller(
        Settings(tenant=lambda carrier: carrier["tenant"]), lambda carrier: None
    )

    def requests(first: int, last: int) -> None:
        for i in range(first, last):
            observed = Observed(labeller, {"tenant": f"t{i}"}, f"VERB{i}")
            observed.ended_ns = observed.began_ns + i
            observed.labels()

    requests(0, 20_000)
    before_kb = resident_kb()
    requests(20_000, 120_000)

    stats = TABLE.stats()
    assert stats.alive <= stats.cap + 2
    assert resident_kb() - before_kb < 3_000


def test_h32_a_hundred_thousand_unknown_paths_leave_no_trace() -> None:
    """The same through the middleware, sampled all the while."""
    from stroboscope.labels import TABLE

    app = asgi.Stroboscope(
        asgi_inner, Settings(tenant=lambda scope: scope["path"], latency_buckets=())
    )

    async def send(message: Any) -> None:
        pass

    async def requests(first: int, last: int) -> None:
        for i in range(first, last):
            method = ("GET", "BREW", f"VERB{i % 1000}")[i % 3]
            scope = {"type": "http", "method": method, "path": f"/{i}", "headers": []}
            await app(scope, None, send)  # type: ignore[arg-type]

    async def main() -> int:
        await requests(0, 20_000)
        before_kb = resident_kb()
        await requests(20_000, 120_000)
        return resident_kb() - before_kb

    window = engine.open_window(250)
    try:
        grown_kb = asyncio.run(main())
    finally:
        window.close()

    stats = TABLE.stats()
    assert stats.alive <= stats.cap + 2
    shown = {value for one in stats.sets for key, value in one.items if key == "method"}
    assert shown <= {"GET", "OTHER"}
    assert grown_kb < 6_000


def resident_kb() -> int:
    gc.collect()
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


@pytest.mark.parametrize("name", ["goroutine", "heap"])
def test_h37_compressing_layers_around_us_change_nothing(name: str) -> None:
    """Inside Starlette's GZip layer a profile has one gzip layer, as without it."""
    from starlette.middleware.gzip import GZipMiddleware

    app = asgi.Stroboscope(asgi_inner, Settings(keys=(KEY,), service="shop"))
    wrapped = GZipMiddleware(app, minimum_size=1)

    answer = ask_asgi(
        f"/debug/pprof/{name}", headers() | {"Accept-Encoding": "gzip"}, app=wrapped
    )

    assert answer.headers["Content-Encoding"] == "identity"
    scrapers.check(answer.body)
