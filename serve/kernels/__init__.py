"""LoRA arithmetic on the CPU, free of vllm."""
