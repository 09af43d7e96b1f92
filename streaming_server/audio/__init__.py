"""Samples to bytes and back: pure functions and codecs, without asyncio, torch or sockets."""
