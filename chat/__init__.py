"""What people talk to: one engine over a base and its adapters, and the surfaces on it."""
