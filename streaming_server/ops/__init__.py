"""What operators look at: metrics, GPUs, the gateway agent."""
