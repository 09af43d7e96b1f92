"""Celery workers and Ray Serve, imported only where they are configured."""
