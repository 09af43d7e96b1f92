"""Announces the server by zeroconf (mDNS), so that Home Assistant discovers it."""

from __future__ import annotations

import socket
import uuid
from ipaddress import ip_address

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
            from zeroconf import InterfaceChoice, IPVersion
            from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf
        except ModuleNotFoundError as error:
            raise EngineUnavailable(f"WYOMING_ZEROCONF needs {error.name}: run scripts/install wyoming") from error
        is_ipv6 = ":" in host  # then asyncio listens on IPv6 alone, at ``::`` too
        address = host.partition("%")[0] if is_ipv6 else socket.gethostbyname(host)
        is_any = ip_address(address).is_unspecified
        adapters = ifaddr.get_adapters() if is_any else ()
        ips = [ip for adapter in adapters for ip in adapter.ips if ip.is_IPv6 is is_ipv6]
        found = [ip.ip if isinstance(ip.ip, str) else ip.ip[0] for ip in ips] or [address]
        name = f"streaming-server-{uuid.getnode():012x}-{port}"
        self._info = AsyncServiceInfo(_SERVICE, f"{name}.{_SERVICE}", parsed_addresses=found, port=port)
        self._zeroconf = AsyncZeroconf(
            interfaces=InterfaceChoice.All if is_any else [address],
            ip_version=IPVersion.All if is_ipv6 else IPVersion.V4Only,
        )

    async def start(self) -> None:
        """Announce the service, with another name on a conflict."""
        await self._zeroconf.async_register_service(self._info, allow_name_change=True)

    async def aclose(self) -> None:
        """Withdraw the announcement."""
        await self._zeroconf.async_unregister_all_services()
        await self._zeroconf.async_close()
