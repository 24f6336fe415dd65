"""Mode `bridge`: a network for the containers of one environment, with the rules that lead it to the egress proxy."""
