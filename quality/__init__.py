"""How good answers are: scorers and intervals. Pure functions; imports no other package of ours."""
