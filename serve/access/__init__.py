"""Who may send requests, how many, and whose turn it is."""
