"""The single server as the replicas of a Ray Serve application; start at `build` in `application.py`."""
