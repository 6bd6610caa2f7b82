"""Runs studies: Ray Tune for the trials, Optuna for what to try, MLflow for the record."""
