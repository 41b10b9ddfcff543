"""The networks: the velocity UNet and the first stages (autoencoders)."""
