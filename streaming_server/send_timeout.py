"""A base of the protocols that aborts the connections of clients that read nothing."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from typing import Any

log = logging.getLogger(__name__)
_MAX_UNSENT_BYTES = 128 * 1024
"""Maximum number of bytes in the kernel that are not sent yet.

Without it the kernel takes megabytes and reports nothing until a third of them has been read."""


class SendTimeout(asyncio.Protocol):
    """Aborts the connection if its client reads nothing for ``send_timeout_s``, also while the connection is closing.

    uvicorn's protocols wait for such a client without a limit.
    """

    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop
    client: Any

    def __init__(self, *args: Any, send_timeout_s: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self._send_timeout_s = send_timeout_s
        self._send_timer: asyncio.TimerHandle | None = None
        """Runs while there are unsent bytes."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if transport.get_write_buffer_size():  # of a response before the upgrade
            self.pause_writing()
        with suppress(OSError):  # a Unix socket, or a system without the option
            connection = transport.get_extra_info("socket")
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _MAX_UNSENT_BYTES)
        transport.set_write_buffer_limits(high=0)  # `pause_writing` follows from the first unsent byte

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_send_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_send_timer()

    def resume_writing(self) -> None:
        self._stop_send_timer()
        super().resume_writing()

    def _start_send_timer(self) -> None:
        unsent_bytes = self.transport.get_write_buffer_size()
        self._send_timer = self.loop.call_later(self._send_timeout_s, self._check_sending, unsent_bytes)

    def _stop_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def _check_sending(self, unsent_bytes: int) -> None:
        if self.transport.get_write_buffer_size() < unsent_bytes:
            self._start_send_timer()
        else:
            log.info("connection aborted: reader too slow", extra={"fields": {"client": self.client}})
            self.transport.abort()
