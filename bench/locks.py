"""What watching locks costs who does not wait, and who does; ddtrace's beside it.

`with lock:` that nobody fights for, and a lock handed between 8 threads; ratios of the
same loop with and without, interleaved in one process. ddtrace wraps locks that are
made while it runs, so its loop has a lock of its own, in another process.
"""

import json
import statistics
import subprocess
import sys
import threading
import time

ROUNDS, ENTRIES, HANDED, THREADS = 15, 200_000, 16_000, 8


def uncontended(lock):
    begin = time.process_time_ns()
    for _ in range(ENTRIES):
        with lock:
            pass
    return (time.process_time_ns() - begin) / ENTRIES


def handed(lock):
    def work():
        for _ in range(HANDED // THREADS):
            with lock:
                time.sleep(0)

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return HANDED / (time.perf_counter() - begin)


def ours():
    from stroboscope._core.contention import contention

    found = {}
    for kind in ("Lock", "RLock"):
        lock = getattr(threading, kind)()
        off, on = [], []
        for _ in range(ROUNDS):
            contention.set_mutex_fraction(0)
            off.append(uncontended(lock))
            contention.set_mutex_fraction(100)
            on.append(uncontended(lock))
        found[f"with {kind}"] = round(min(on) / min(off), 3)
    lock, ratios = threading.Lock(), []
    for _ in range(ROUNDS):
        contention.set_mutex_fraction(0)
        plain = handed(lock)
        contention.set_mutex_fraction(100)
        ratios.append(handed(lock) / plain)
    found["handed between 8"] = round(statistics.median(ratios), 3)
    contention.set_mutex_fraction(0)
    return found


def theirs():
    plain, lock = [], threading.Lock()
    from ddtrace.profiling.collector import threading as collectors

    collector = collectors.ThreadingLockCollector(capture_pct=1.0)
    collector.start()
    wrapped, watched = threading.Lock(), []
    for _ in range(ROUNDS):
        plain.append(uncontended(lock))
        watched.append(uncontended(wrapped))
    collector.stop()
    return {"with Lock": round(min(watched) / min(plain), 3)}


def main():
    if "ddtrace" in sys.argv:
        print(json.dumps(theirs()))
        return
    found = {"ours": ours()}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "bench.locks", "ddtrace"],
        capture_output=True,
        text=True,
    )
    try:
        found["ddtrace"] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        found["ddtrace"] = {"failed": done.stderr.strip().splitlines()[-1:]}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
