"""Mathematics with several executions: the plain formula, and what is fast on each platform."""
