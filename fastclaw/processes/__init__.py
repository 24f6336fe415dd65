"""What every runtime promises of a process: ids, sockets, records, admission, deadlines."""
