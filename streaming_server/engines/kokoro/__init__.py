"""Kokoro-82M on ONNX Runtime: English, Mandarin and Japanese in its own voices and blends of them, without cloning."""
