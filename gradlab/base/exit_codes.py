"""What a command ends with, the same for every command."""

# All is well; something was found wrong or failed; the request cannot be done as it stands; Ctrl-C, as shells say it.
OK, FOUND, UNUSABLE, INTERRUPTED = 0, 1, 2, 130
# A signal's number is added to it, as shells do.
SIGNALLED = 128
