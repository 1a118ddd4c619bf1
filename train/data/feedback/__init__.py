"""Data sets of sampled answers and what people and judges say of them; start at `build_from_samples`."""
