"""The command line: one short file per command, each with `main(argv) -> exit code`."""
