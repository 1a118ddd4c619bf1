"""Everything that looks at a server from outside. Speaks HTTP only."""
