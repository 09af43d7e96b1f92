"""Operations: metrics, GPUs, the gateway's agent check, stack dumps."""
