"""The command line, and the script that runs on a cluster."""
