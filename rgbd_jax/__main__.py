"""`python -m rgbd_jax COMMAND` (see `rgbd_jax.cli`)."""

from rgbd_jax.cli import main

main()
