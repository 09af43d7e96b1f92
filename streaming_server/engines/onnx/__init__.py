"""What engines on ONNX Runtime share: splitting text, English phonemes, sessions."""
