"""Pages of tasks: their types in all workers, and the timeline of one request."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape
from typing import Any

from stroboscope._http.messages import Response
from stroboscope.endpoints.call import Call
from stroboscope.endpoints.pages import page, table

_WIDTH, _ROW, _LEFT = 940, 22, 4
#: A label is drawn inside its bar where so many pixels a letter are there for it.
_LETTER = 7.2
#: Regions drawn and listed; JSON has them all.
_SHOWN = 300


def types_page(call: Call, told: dict[str, Any]) -> Response:
    """Tasks by type, of every worker that answered; who is missing, and why."""
    notes = [*told.get("missing", ())]
    own = {told.get("pid", ""): told}
    for pid, worker in told.get("workers", own).items():
        recorder = worker.get("recorder")
        notes.append(
            f"worker {pid}: the last {recorder['seconds']:g} s, "
            f"{recorder['events']} events, {recorder['lost']} lost"
            if recorder
            else f"worker {pid}: nothing is recorded"
        )
    rows = [_type_row(one) for one in told["types"]]
    alive = [_live_row(call, one) for one in told["live"]]
    said = "".join(f"<p>{escape(note)}</p>" for note in notes)
    heads = ("task", "count", "latency", "where its time went", "CPU, waiting")
    return page(
        "tasks",
        said,
        "<h2>By type</h2>",
        table((*heads, "slowest"), rows) if rows else "<p>none</p>",
        "<h2>Alive</h2>",
        table(("task", "age", "region", "where"), alive) if alive else "<p>none</p>",
    )


def task_page(call: Call, tasks: list[dict[str, Any]]) -> Response:
    """The timeline of each of these tasks."""
    parts: list[str] = []
    for one in tasks:
        if len(tasks) > 1:
            parts.append(f"<h2>{escape(one['method'])} {escape(one['name'])}</h2>")
        parts += _task_parts(call, one)
    first = tasks[0]
    return page(f"{first['method']} {first['name']}", *parts)


def _type_row(one: dict[str, Any]) -> tuple[str, ...]:
    latency = one["latency"]
    quantiles = " ".join(
        f"{name[:-3]}&nbsp;{_ms(latency[name])}"
        for name in ("p50_ms", "p90_ms", "p99_ms", "max_ms")
        if name in latency
    )
    count = f"{one['ended']} ({one['per_second']:g}/s)"
    if one["errors"]:
        count += f", <b>errors: {one['errors']}</b>"
    if one["alive"]:
        count += f", {one['alive']} alive"
    shares = [(region["name"], region["share"]) for region in one["regions"][:8]]
    shares.append(("unaccounted", one["unaccounted"]))
    cpu = "not known"
    if one["cpu_s"] is not None:
        error = _ms(one["cpu_error_s"] * 1e3)
        cpu = f"{_ms(one['cpu_s'] * 1e3)} ± {error}, {_ms(one['waiting_s'] * 1e3)}"
    return (
        f"<code>{escape(one['method'])} {escape(one['name'])}</code>",
        count,
        f"{quantiles}<br>{_histogram(latency['counts'])}",
        "<br>".join(f"{share:.1%} {escape(name)}" for name, share in shares),
        cpu,
        "<br>".join(
            f'<a href="{escape(slow["url"])}">{_ms(slow["duration_ms"])}</a>'
            + _trace_link(slow, " trace")
            for slow in one["slowest"]
        ),
    )


def _live_row(call: Call, one: dict[str, Any]) -> tuple[str, ...]:
    region = escape(one["region"])
    if one["region_age_s"] is not None:
        region += f" ({_ms(one['region_age_s'] * 1e3)})"
    stack = one["stacks"][0][:6] if one["stacks"] else []
    return (
        f'<a href="{escape(one["url"])}">{escape(one["method"])} '
        f"{escape(one['name'] or '(not known yet)')}</a>{_trace_link(one, ' trace')}",
        _ms(one["age_s"] * 1e3),
        region,
        "<br>".join(f"<code>{escape(place)}</code>" for place in stack),
    )


def _task_parts(call: Call, one: dict[str, Any]) -> Iterable[str]:
    began = datetime.fromtimestamp(one["began"], UTC)
    here = f"{call.mount}/tasks/{one['id']}"
    state = "alive" if one["alive"] else f"status {one['status']}"
    if one["open"]:
        state += f", open {one['open']}: the recording does not hold all of it"
    links = (
        f'<a href="{escape(here)}?format=perfetto">Perfetto</a> '
        f'<a href="{escape(here)}?format=json">Chrome</a>{_trace_link(one, " trace")}'
    )
    known = [("task", one["id"]), ("parent", one["parent"])]
    known += [("trace id", one["trace_id"]), ("span id", one["span_id"])]
    known += list(one["labels"].items())
    yield (
        f"<p>{began:%Y-%m-%d %H:%M:%S.%f} UTC, {_ms(one['duration_ms'])}, "
        f"{escape(state)}; {links}</p>"
    )
    yield _drawing(one)
    shares = [*one["time_ms"].items(), ("unaccounted", one["unaccounted_ms"])]
    yield table(
        ("region", "time"), [(escape(name), _ms(time_ms)) for name, time_ms in shares]
    )
    if one["moments"]:
        yield "<h2>Moments</h2>"
        rows = [
            (
                _ms(moment["at_ms"]),
                escape(f"{moment['kind']} {moment['name']}"),
                escape(moment["text"]),
            )
            for moment in one["moments"][:_SHOWN]
        ]
        yield table(("at", "moment", "text"), rows)
    yield "<h2>Known of it</h2>"
    yield table((), [(escape(k), f"<code>{escape(v)}</code>") for k, v in known if v])


def _drawing(one: dict[str, Any]) -> str:
    """Regions as bars below each other, by track and depth; SVG needs no style."""
    total_ms = max(one["duration_ms"], 0.001)
    bars: list[tuple[tuple[int, int], dict[str, Any]]] = []
    rows: dict[tuple[int, int], int] = {}
    ends: dict[int, list[float]] = {}
    for region in one["regions"][:_SHOWN]:
        track, at_ms = region["track"], region["at_ms"]
        stack = [end for end in ends.get(track, ()) if end > at_ms]
        key = (track, len(stack))
        ends[track] = [*stack, at_ms + region["duration_ms"]]
        rows.setdefault(key, 0)
        bars.append((key, region))
    for number, key in enumerate(sorted(rows)):
        rows[key] = number + 1
    drawn = [_bar(0, 0, _WIDTH, f"{one['name']} {total_ms:g} ms", is_failed=False)]
    for key, region in bars:
        left = _WIDTH * max(0.0, region["at_ms"]) / total_ms
        width = _WIDTH * region["duration_ms"] / total_ms
        text = f"{region['name']} {region['duration_ms']:g} ms"
        drawn.append(_bar(rows[key], left, width, text, is_failed=region["failed"]))
    height = (len(rows) + 1) * _ROW
    return (
        f'<svg viewBox="0 0 {_WIDTH + 2 * _LEFT} {height + 4}" width="100%" '
        f'font-size="12" font-family="monospace" role="img">{"".join(drawn)}</svg>'
    )


def _bar(row: int, left: float, width: float, text: str, *, is_failed: bool) -> str:
    colour = "#c9302c" if is_failed else "#2f7fd0"
    fits = max(0, int((width - 6) / _LETTER))
    shown = text if len(text) <= fits else text[: fits - 1] + "…" if fits > 4 else ""
    top = row * _ROW + 2
    return (
        f'<g><title>{escape(text)}</title><rect x="{left + _LEFT:.1f}" y="{top}" '
        f'width="{max(width, 1):.1f}" height="{_ROW - 3}" rx="2" fill="{colour}" '
        f'fill-opacity="{0.25 if row else 0.12}" stroke="{colour}"/>'
        f'<text x="{left + _LEFT + 4:.1f}" y="{top + 14}" fill="currentColor">'
        f"{escape(shown)}</text></g>"
    )


def _histogram(counts: list[int]) -> str:
    """A bar for each bucket of the latency histogram."""
    most = max(counts) or 1
    bars = "".join(
        f'<rect x="{8 * at}" y="{24 - 24 * count / most:.1f}" width="7" '
        f'height="{24 * count / most:.1f}" fill="#2f7fd0"/>'
        for at, count in enumerate(counts)
    )
    width = 8 * len(counts)
    return (
        f'<svg viewBox="0 0 {width} 25" width="{width}" height="25" role="img">'
        f'{bars}<line x1="0" x2="{width}" y1="24.5" y2="24.5" stroke="currentColor" '
        'stroke-opacity=".4"/></svg>'
    )


def _trace_link(one: dict[str, Any], text: str) -> str:
    url = one["trace_url"]
    return f' <a href="{escape(url)}">{escape(text.strip())}</a>' if url else ""


def _ms(value: float) -> str:
    if value >= 10_000:
        return f"{value / 1000:.1f}&nbsp;s"
    return f"{value:.3g}&nbsp;ms" if value < 100 else f"{value:.0f}&nbsp;ms"
