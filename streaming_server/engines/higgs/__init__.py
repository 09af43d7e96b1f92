"""HiggsAudio v2 through transformers, streamed frame by frame. An extra of its own: ``[higgs]``."""
