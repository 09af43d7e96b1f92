"""Announces the server by zeroconf (mDNS), so that Home Assistant discovers it."""

from __future__ import annotations

import socket
import uuid

from streaming_server.errors import EngineUnavailable

_SERVICE = "_wyoming._tcp.local."


class Discovery:
    """An announced service."""

    def __init__(self, host: str, port: int) -> None:
        """
        Raises:
            EngineUnavailable: the package zeroconf is missing.
        """
        try:
            import ifaddr
            from zeroconf import InterfaceChoice
            from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf
        except ModuleNotFoundError as error:
            raise EngineUnavailable(f"WYOMING_ZEROCONF needs {error.name}: run scripts/install wyoming") from error
        address = socket.gethostbyname(host) if ":" not in host else "0.0.0.0"
        is_any = address == "0.0.0.0"
        adapters = ifaddr.get_adapters() if is_any else ()
        found = [str(ip.ip) for adapter in adapters for ip in adapter.ips if ip.is_IPv4] or [address]
        name = f"streaming-server-{uuid.getnode():012x}-{port}"
        self._info = AsyncServiceInfo(
            _SERVICE, f"{name}.{_SERVICE}", addresses=[socket.inet_aton(ip) for ip in found], port=port
        )
        self._zeroconf = AsyncZeroconf(interfaces=InterfaceChoice.All if is_any else [address])

    async def start(self) -> None:
        """Announce the service, with another name on a conflict."""
        await self._zeroconf.async_register_service(self._info, allow_name_change=True)

    async def aclose(self) -> None:
        """Withdraw the announcement."""
        await self._zeroconf.async_unregister_all_services()
        await self._zeroconf.async_close()
