"""The commands of `sam2-jax`: a file each, with `HELP`, `EXAMPLES`, `add_arguments` and `run`."""
