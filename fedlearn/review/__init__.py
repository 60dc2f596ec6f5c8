"""Review: from a finished run's files to pictures."""
