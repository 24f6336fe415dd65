"""A network with a firewall for the containers of one environment."""
