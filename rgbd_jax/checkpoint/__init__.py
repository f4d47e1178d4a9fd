"""Files of a run: checkpoints, metrics, config, provenance and model card."""
