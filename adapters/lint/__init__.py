"""Whether a PEFT folder can be served.

`lint_folder` (lint.py) returns findings, `raise_errors` raises on errors, `check_publishable` does both.
"""
