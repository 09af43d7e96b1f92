"""A streaming text-to-speech server around the IndexTTS family."""

__version__ = "1.1.0"
