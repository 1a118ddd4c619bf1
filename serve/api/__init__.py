"""The HTTP API: completions, responses, administration."""
