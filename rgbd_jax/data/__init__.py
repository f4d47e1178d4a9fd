"""From prepared records to batches of clips, and the heat maps computed from them on the accelerator."""
