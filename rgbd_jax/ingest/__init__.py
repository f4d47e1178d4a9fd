"""Raw clips to prepared data sets: discovery, validation and sharded builds."""
