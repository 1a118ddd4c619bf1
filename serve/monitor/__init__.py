"""What runs beside the server: samples of its traffic, held-out probes, drift, a judge, and the verdict on canaries."""
