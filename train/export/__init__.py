"""`lorikeet export`: versions in the formats of other programs, one file per format; `cli.py` lists them."""
