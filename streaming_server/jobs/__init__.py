"""Durable work: the job store, its runner, uploads, files and workers."""
