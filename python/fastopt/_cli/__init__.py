"""The commands of ``fastopt``, a module each: its options, and what it does."""
