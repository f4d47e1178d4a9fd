"""ml_collections configs, one file a data set."""
