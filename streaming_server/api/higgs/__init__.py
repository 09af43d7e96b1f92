"""The HiggsAudio dialect."""
