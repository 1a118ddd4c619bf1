"""`lorikeet eval decide`: prompting, retrieval and the adapter on the same questions; start at `decide`."""
