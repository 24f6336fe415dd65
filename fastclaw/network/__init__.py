"""What an environment may reach: nothing, an egress proxy, a bridge with a firewall, or all."""
