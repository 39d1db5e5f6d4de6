"""The rows of memory, locks, stacks at rest and time off the CPU: measured and shown."""

PEERS = ("tracemalloc", "memray", "ddtrace")
LOOPS = ("blocks", "buffers", "objects")


def measure(run):
    """`run(module, *arguments)` measures in a process of its own."""
    return {
        "heap": {
            "loops": {peer: run("heap", "loops", peer) for peer in ("ours", *PEERS)},
            **{part: run("heap", part) for part in ("requests", "served", "truth", "pause")},
        },
        "locks": run("locks"),
        "dump": run("dump"),
        "wall": run("wall"),
    }


def rows(raw):
    """(measure, target, ours, ddtrace's or another's) each."""
    return [*heap_rows(raw["heap"]), *lock_rows(raw["locks"]), *rest_rows(raw)]


def heap_rows(heap):
    def loop(peer, name):
        return heap["loops"][peer].get(name, "did not run")

    found = []
    for name in LOOPS:
        others = (f"{peer} {loop(peer, name)}" for peer in PEERS[:2])
        measure = f"heap, loop of {name}; {', '.join(others)}"
        found.append((measure, "<= 1.10", loop("ours", name), loop("ddtrace", name)))
    requests, truth, pause = heap["requests"], heap["truth"], heap["pause"]
    served = heap["served"]
    on, fast = requests.get("heap", {}), requests.get("fast path alone", {})
    low, high = on.get("95 %", ("?", "?"))
    found.append(
        (
            "heap, CPU a request, FastAPI",
            "<= 1.02",
            f"{on.get('ratio')}, 95 % {low} to {high}; hooks alone {fast.get('ratio')}; "
            f"uvicorn's {served.get('ratio')}, 95 % {served.get('95 %')}",
        )
    )
    errors = truth.get("mean error %", {})
    worst = max(map(abs, errors.values()), default="did not run")
    found.append(
        (
            "heap, live bytes of 3 endpoints, worst mean error",
            "<= 10 %",
            f"{worst} %; one alone {truth.get('deviation of one %')} %, by chance "
            f"{truth.get('deviation by chance %')} %",
        )
    )
    found.append(
        (
            f"heap, loop's longest pause, {pause.get('rows')} rows",
            "<= 5 ms",
            f"{pause.get('reading, median ms')} ms; at rest "
            f"{pause.get('at rest, median ms')}",
        )
    )
    return found


def lock_rows(locks):
    ours, theirs = locks.get("ours", {}), locks.get("ddtrace", {})
    return [
        (
            "uncontended `with Lock`, fraction 100",
            "<= 1.3",
            ours.get("with Lock"),
            theirs.get("with Lock", "did not run"),
        ),
        ("uncontended `with RLock`, fraction 100", "<= 1.3", ours.get("with RLock")),
        ("lock handed between 8 threads", ">= 0.97", ours.get("handed between 8")),
    ]


def rest_rows(raw):
    dump, wall = raw["dump"], raw["wall"]
    on, cpu = wall.get("wall", {}), wall.get("cpu alone", {})
    low, high = on.get("95 %", ("?", "?"))
    return [
        (
            "goroutine, 10 000 tasks and 200 threads; all_tasks and get_stack "
            f"{dump.get('asyncio: ms')}",
            "<= 250 ms",
            f"{dump.get('ours: ms')} ms; debug=2 {dump.get('text: ms')}",
        ),
        (
            f"loop's longest pause in it; all_tasks {dump.get('asyncio: pause ms')}",
            "<= 20 ms",
            f"{dump.get('ours: pause ms')} ms; beside a loop that never sleeps "
            f"{dump.get('ours, busy: pause ms')}",
        ),
        (
            "the same of 10 000 greenlets",
            "<= 20 ms",
            f"{dump.get('greenlets: pause ms')} ms, in {dump.get('greenlets: ms')}",
        ),
        (
            "wall at 100 Hz, 1000 suspended tasks, CPU a request",
            "<= 1.02",
            f"{on.get('ratio')}, 95 % {low} to {high}; CPU sampler alone "
            f"{cpu.get('ratio')}",
        ),
    ]
