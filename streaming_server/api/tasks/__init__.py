"""The task dialect."""
