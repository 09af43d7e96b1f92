"""Shared by engines on ONNX Runtime: text splitting, English phonemes, sessions."""
