"""Processes of this host: the lane without a sandbox, and the warden that ends them when fastclaw is killed."""
