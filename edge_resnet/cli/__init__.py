"""The commands: parse, call the library, print. Heavy imports happen inside each command."""
