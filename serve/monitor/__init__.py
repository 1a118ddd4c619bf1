"""The quality monitor: samples of traffic, held-out questions, drift checks, a judge, and canary verdicts.

`MonitoredServer` (protocol.py) is all that it needs of the server.
"""
