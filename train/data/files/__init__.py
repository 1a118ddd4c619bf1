"""Files of examples: `find_files` (paths.py) resolves `data.path`, `read_records` (containers.py) reads their rows."""
