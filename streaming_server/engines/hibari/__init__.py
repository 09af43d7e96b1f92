"""hibari: a neural English engine whose weights are part of its package. It does not clone voices."""
