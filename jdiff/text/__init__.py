"""From a prompt to its embedding."""
