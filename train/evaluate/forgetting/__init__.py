"""What a model could do before: texts, tasks and other domains, measured without and with the adapter."""
