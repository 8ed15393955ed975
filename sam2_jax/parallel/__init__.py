"""Where things are: the grid of devices (`mesh`) and which part of every array each holds (`rules`)."""
