"""Whether a PEFT folder can be served.

`lint_folder` (lint.py) finds, `raise_errors` refuses, `check_publishable` does both before a publish.
"""
