"""Fine-tuning jobs of clients: what a job becomes, and the worker that runs it; start at `Worker` (worker.py)."""
