"""What is replaced in vLLM on a CPU: LoRA, linear layers, attention, sampling, threads."""
