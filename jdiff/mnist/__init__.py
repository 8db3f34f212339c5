"""MNIST: the networks of the course's part B, and the data and the digit judge of the mini model."""
