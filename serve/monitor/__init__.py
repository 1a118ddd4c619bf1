"""What runs beside the server: samples of its traffic, held-out probes, drift, a judge, and the verdict on canaries.

`MonitoredServer` (protocol.py) is all that it needs of the server.
"""
