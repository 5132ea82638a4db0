"""The quota ledger's adapters: in memory over a journal, and in Redis."""
