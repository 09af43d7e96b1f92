"""The Wyoming protocol: text to speech over TCP for Home Assistant."""
