"""What a person sees of a built data set, on the terminal, as one HTML page and as JSON; start at `make_report`."""
