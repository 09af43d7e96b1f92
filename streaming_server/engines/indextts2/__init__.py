"""IndexTTS 2.0 and 2.5: voice and emotion told apart, and audio below the sentence. Needs the extra [indextts2]."""

from contextlib import suppress

from streaming_server.engines.torchaudio_import import import_torchaudio

with suppress(
    ModuleNotFoundError
):  # not needed here; but where another engine's extra brought it, transformers wants it
    import_torchaudio()
