"""Kokoro-82M on ONNX Runtime: nine languages, preset voices and blends. It does not clone voices."""
