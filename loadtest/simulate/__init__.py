"""What a fleet of servers would do, from the measurements of one."""
