"""Learning: the simulated annotator, losses, the optimizer, the step, and the run around it."""
