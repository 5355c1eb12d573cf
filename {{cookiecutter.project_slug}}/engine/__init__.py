"""One file per feature; the same in every project, naming no dataset and no network."""
