"""The dialect of ElevenLabs: speech over HTTP, with the times of its characters, and two WebSocket protocols."""
