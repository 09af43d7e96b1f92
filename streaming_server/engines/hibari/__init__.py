"""hibari: a neural English voice whose weights come with its package. It does not clone voices."""
