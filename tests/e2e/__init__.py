"""A real control plane and two inference clusters on this machine's loopback, and the stories that are told on them."""
