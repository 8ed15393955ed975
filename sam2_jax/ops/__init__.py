"""Mathematics with several executions, chosen by platform and shape; each with a plain reference."""
