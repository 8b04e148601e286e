"""The commands, as their user meets them."""
