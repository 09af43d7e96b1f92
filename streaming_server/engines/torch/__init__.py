"""What the PyTorch model runtimes share."""
