"""The door to vllm: nothing outside this folder imports it."""
