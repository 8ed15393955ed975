"""How fast and how large: what is measured on a device, and what a compiler says of one that is not there."""
