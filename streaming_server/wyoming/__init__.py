"""The Wyoming protocol, by which Home Assistant uses text to speech over TCP."""
