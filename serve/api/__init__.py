"""The HTTP routes: completions, administration, errors, bodies, streams, and what keeps web pages out.

`Completions`, `admin_router`.
"""
