"""What is told to others of what happened when: a journal of flights."""
