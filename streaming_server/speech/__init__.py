"""The live path: one slot, one engine, streams of samples and of encoded bytes."""
