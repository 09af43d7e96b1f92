"""Pocket TTS: Kyutai's package, which clones the voice of a recording on a CPU, with one language per model."""
