"""Where users, keys, records and the quota journal are kept: SQLite in the data folder, or PostgreSQL.

`Database` owns the connections and their threads; `SqlAccounts`, `SqlRecords` and `SqlJournal` are the ports over it.
"""
