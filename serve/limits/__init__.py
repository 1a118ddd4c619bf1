"""What one request may ask for."""
