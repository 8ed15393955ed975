"""How good predicted masks are: the scores that papers report."""
