"""What the kernel offers, each mechanism once."""
