"""More than one process: imported only where it is configured."""
