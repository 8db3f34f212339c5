"""The training loop, its objectives, its log, and convolutions that train fast on CPUs."""
