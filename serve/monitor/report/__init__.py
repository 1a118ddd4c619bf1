"""The quality report, as text and HTML."""
