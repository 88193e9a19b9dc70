"""The console's socket."""

from __future__ import annotations

import asyncio
import socket

import pytest

from workers.console.role import listening


def test_small_answers_leave_at_once():
    """An answer that waits for the client's acknowledgement takes 40 ms: p99 was 48 ms."""
    async def run() -> int:
        found = asyncio.get_running_loop().create_future()

        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            found.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        door = listening("127.0.0.1", 0)
        async with await asyncio.start_server(answer, sock=door):
            await asyncio.open_connection("127.0.0.1", door.getsockname()[1])
            return await found

    assert asyncio.run(run())


def test_a_port_that_is_taken_is_an_error_that_leaves_nothing_open():
    with listening("127.0.0.1", 0) as door, pytest.raises(OSError, match="in use"):
        listening("127.0.0.1", door.getsockname()[1])


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_address_of_ipv6_is_taken_with_and_without_brackets(host):
    try:
        socket.socket(socket.AF_INET6).bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 here")
    with listening(host, 0) as door:
        assert door.family == socket.AF_INET6
