"""IndexTTS 1.5 and 1.0: an own runtime that speaks while the model is still decoding. Needs the extra [indextts]."""
