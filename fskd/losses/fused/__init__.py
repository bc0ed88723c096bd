"""What is there for speed: the same losses with gradients in closed form, fused or compiled."""
