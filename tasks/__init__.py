"""The tasks, one file each; the command line and the contract tests find them by listing this folder."""
