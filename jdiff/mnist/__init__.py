"""MNIST: the networks of part B of the course, and the data and the judge of the mini model."""
