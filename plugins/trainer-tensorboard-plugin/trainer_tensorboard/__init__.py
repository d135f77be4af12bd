"""TensorBoard event files for trainer-core."""
