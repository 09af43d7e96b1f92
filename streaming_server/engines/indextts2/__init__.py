"""IndexTTS 2.0 and 2.5: voice and emotion told apart, and audio below the sentence. Needs the extra [indextts2]."""

from contextlib import suppress

from streaming_server.engines.torchaudio_import import import_torchaudio

# It is not needed here; but where the extra of another engine brought it, transformers wants it.
with suppress(ModuleNotFoundError):
    import_torchaudio()
