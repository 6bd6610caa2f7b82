"""The command proseg-tune."""
