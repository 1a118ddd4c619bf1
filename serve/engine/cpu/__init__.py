"""The parts of vLLM that are replaced on CPUs."""
