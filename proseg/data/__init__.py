"""Data sets: their sources, the prepared store, patient-disjoint folds, batches."""
