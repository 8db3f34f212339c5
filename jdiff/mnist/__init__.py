"""MNIST: the networks of part B of the course, and the coloured, captioned digits of the mini model."""
