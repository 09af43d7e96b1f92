"""The services between the dialects and the engine: asyncio, but no HTTP."""
