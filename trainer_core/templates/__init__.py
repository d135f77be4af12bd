"""What `trainer new-plugin` begins a plugin with: each module is one, `Example` its class."""
