"""Optional ways to run on several machines, each imported only where it is used."""
