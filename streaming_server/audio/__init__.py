"""Samples in, bytes out, and back. Pure: no asyncio, no torch, no sockets, no knowledge of requests."""
