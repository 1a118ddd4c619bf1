"""Data to published adapter version. The only door to trl, peft and bitsandbytes."""
