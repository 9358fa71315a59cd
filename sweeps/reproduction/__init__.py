"""The whole paper from one command, and a ledger of its claims."""
