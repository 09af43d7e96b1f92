"""espeak-ng: real speech with nothing to download. It does not clone voices."""
