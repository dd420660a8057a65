import asyncio
import math

import pytest

from bench.fake_provider import serve
from bench.load import Clients, Connection, Watch, Window, Work, connect, one_at_a_time
from bench.scenarios import percentiles


async def _asked(work: Work) -> tuple[str | None, Window]:
    window = Window()
    window.is_open = True
    connection = await connect(window, 0, work)
    try:
        return await connection.exchange(work.request(0, 0)), window
    finally:
        connection.close()


@pytest.mark.parametrize(("every_ms", "is_streamed"), [(0, True), (1, True), (-1, True), (0, False)])
async def test_the_load_counts_what_the_provider_sends(every_ms: int, is_streamed: bool) -> None:  # noqa: FBT001
    server, port = await serve()
    async with server:
        problem, window = await _asked(Work(port, "/v1/chat/completions", 40, every_ms, is_streamed=is_streamed))
    assert problem is None
    assert len(window.delays_ns) == 40
    assert min(window.delays_ns) >= -1000  # of a burst, tokens after the first bear a later nanosecond each


async def test_many_clients_are_all_heard_and_none_has_errors() -> None:
    server, port = await serve()
    async with server:
        clients = Clients(Work(port, "/v1/chat/completions", 20, 5), 25)
        lasted = await clients.run(ramp_s=0.1, settle_s=0.1, window_s=0.5, watch=Watch())
    window = clients.window
    assert (len(window.heard), dict(window.errors)) == (25, {})
    assert math.isclose(len(window.delays_ns) / lasted, 25 * 200, rel_tol=0.35)


async def test_a_paced_stream_takes_its_time() -> None:
    server, port = await serve()
    async with server:
        loop = asyncio.get_running_loop()
        began = loop.time()
        problem, _ = await _asked(Work(port, "/v1/chat/completions", 11, 20))
    assert problem is None
    assert loop.time() - began >= 0.19


async def test_what_is_cut_short_or_refused_is_an_error_with_a_name() -> None:
    answers = {
        "connection cut": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        "status 503": b"HTTP/1.1 503 Busy\r\ncontent-length: 2\r\n\r\n{}",
        "no proper end": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\n:\n\n\r\n0\r\n\r\n",
        "1 tokens of 3": b"HTTP/1.1 200 OK\r\ncontent-length: 18\r\n\r\nt0000000000000001 ",
    }
    for problem, answer in answers.items():

        async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytes = answer) -> None:
            await reader.readuntil(b"}")
            writer.write(answer)
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(say, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            assert (await _asked(Work(port, "/v1/chat/completions", 3, 0)))[0] == problem


async def test_a_stamp_cut_by_a_read_is_counted_once() -> None:
    event = b'data: {"choices":[{"delta":{"content":"t0000000000000001 t0000000000000002 "}}]}\n\n'
    whole = (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n52\r\n" + event + b"\r\n10\r\ndata: [DONE]\n\n\r\n\r\n0\r\n\r\n"
    )
    for size in (1, 7, 50):
        connection = Connection(Window(), 0, Work(0, "/", 2, 0))
        connection._transport = _Sink()  # type: ignore[assignment]
        asking = asyncio.ensure_future(connection.exchange(b""))
        await asyncio.sleep(0)
        for at in range(0, len(whole), size):
            connection.data_received(whole[at : at + size])
        assert await asking is None


class _Sink:
    def write(self, data: bytes) -> None:
        pass


async def test_s0_says_each_piece_twice_and_it_counts_once() -> None:
    connection = Connection(Window(), 0, Work(0, "/", 1, 0, sessions=("s",)))
    connection._transport = _Sink()  # type: ignore[assignment]
    asking = asyncio.ensure_future(connection.exchange(b""))
    await asyncio.sleep(0)
    piece = b"t0000000000000001 "
    connection.data_received(
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        + b'ff\r\ndata: {"type":"content","content":"%b","delta":"%b"}\n\n\r\n' % (piece, piece)
        + b'ff\r\ndata: {"type":"done"}\n\n\r\n0\r\n\r\n'
    )
    assert await asking is None


async def test_the_direct_call_is_measured_against_itself_as_nothing() -> None:
    server, port = await serve()
    async with server:
        work = Work(port, "/v1/chat/completions", 3, 0)
        pairs = await one_at_a_time(work, work, 10, warm_up=2)
    assert len(pairs.direct) == len(pairs.proxied) == 10
    assert not pairs.errors


def test_percentiles_are_of_what_was_measured() -> None:
    assert percentiles(range(101)) == {"p50": 50, "p95": 95, "p99": 99, "max": 100}
    assert percentiles([]) == {}
