"""Who holds the streams of processes: fastclaw itself, or relay workers where its descriptors do not suffice."""
