"""The OpenAI-compatible server. `serve.engine` is the only door to vllm."""
