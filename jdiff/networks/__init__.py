"""The UNet and T5, as pure functions of (parameters, inputs) with the shapes of their parameters."""
