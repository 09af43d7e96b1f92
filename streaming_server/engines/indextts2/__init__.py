"""IndexTTS 2.0 and 2.5: voice and emotion told apart, and audio below the sentence. Needs the extra [indextts2]."""
