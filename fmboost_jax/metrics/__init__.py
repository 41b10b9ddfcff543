"""How close one image is to another."""
