"""What an adapter's files must be before they are published or imported."""
