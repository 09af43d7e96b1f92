"""The HTTP dialects: parse, ask the core, answer. No behaviour of their own."""
