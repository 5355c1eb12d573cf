"""The command line: argv -> Settings. Imports neither torch nor Lightning."""
