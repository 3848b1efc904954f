"""Work on many machines, through Ray (https://docs.ray.io): it knows processes, never layers."""
