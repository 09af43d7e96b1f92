"""The combined queue status of several servers, read from each one over HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

import httpx
from pydantic import TypeAdapter

from streaming_server.api.native.queue_schemas import FleetServer, FleetStatus, QueueEvent
from streaming_server.api.native.schemas import Health
from streaming_server.environment import InvalidSetting

_TIMEOUT_S = 2.0
_EVENT = TypeAdapter(QueueEvent)
_HEALTH = TypeAdapter(Health)


class Fleet:
    """The servers behind one gateway, including this one."""

    def __init__(self, urls: Sequence[str]) -> None:
        """
        Raises:
            InvalidSetting: a URL that is not an HTTP base URL.
        """
        for url in urls:
            if not url.startswith(("http://", "https://")):
                raise InvalidSetting(f"FLEET={url}: must be base URLs such as http://gpu1:8000")
        self._urls = [url.rstrip("/") for url in urls]
        # Proxy variables of the environment do not apply to servers of the same network.
        self._client = httpx.AsyncClient(timeout=None, trust_env=False)

    async def aclose(self) -> None:
        await self._client.aclose()

    async def status(self, headers: Mapping[str, str]) -> FleetStatus:
        """Query all servers concurrently; ``headers`` carry the caller's API key, if any."""
        servers = await asyncio.gather(*(self._ask(url, headers) for url in self._urls))
        processing = sum(server.get("is_processing", False) for server in servers)
        healthy = [server for server in servers if server["status"] == "healthy"]
        return {
            "is_processing": processing > 0,
            "queue_available": any(server["queue_available"] for server in healthy),
            "timestamp": time.time(),
            "processing": processing,
            "waiting": sum(server.get("waiting", 0) for server in servers),
            "servers_total": len(servers),
            "servers_healthy": len(healthy),
            "servers": list(servers),
        }

    async def _ask(self, url: str, headers: Mapping[str, str]) -> FleetServer:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                health = _HEALTH.validate_json((await self._client.get(f"{url}/health", headers=headers)).content)
                event = await self._first_event(url, headers)
        except TimeoutError:
            return {"url": url, "status": "unreachable", "error": f"no answer within {_TIMEOUT_S:g} s"}
        except httpx.HTTPStatusError as error:
            return {"url": url, "status": "unreachable", "error": f"answered with {error.response.status_code}"}
        except httpx.HTTPError:
            return {"url": url, "status": "unreachable", "error": "no connection"}
        except ValueError:
            return {"url": url, "status": "unreachable", "error": "not a server of this kind"}
        server: FleetServer = {
            "url": url,
            "status": health["status"],
            "is_processing": event["is_processing"],
            "queue_available": event["queue_available"],
            "waiting": event["waiting"],
        }
        if "current_request" in event:
            server["current_request"] = event["current_request"]
        return server

    async def _first_event(self, url: str, headers: Mapping[str, str]) -> QueueEvent:
        async with self._client.stream("GET", f"{url}/opus_queue_status/events", headers=headers) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    return _EVENT.validate_json(line.removeprefix("data: "))
        raise ValueError("no event")
