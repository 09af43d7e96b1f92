"""The workflow dialect."""
