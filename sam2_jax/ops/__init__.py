"""Mathematics with several executions, each with a plain reference."""
