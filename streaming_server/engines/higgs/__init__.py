"""HiggsAudio v2 through transformers, streamed frame by frame. Requires the extra ``[higgs]``."""
