"""IndexTTS 1.5 and 1.0: a runtime that streams audio while the model decodes. Requires the extra [indextts]."""
