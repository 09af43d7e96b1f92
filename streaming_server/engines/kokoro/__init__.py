"""Kokoro-82M on ONNX Runtime: nine languages in its own voices and blends of them, without cloning."""
