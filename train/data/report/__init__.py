"""What a person sees of a built data set: `DataReport` (figures.py), on the terminal and as one HTML page."""
