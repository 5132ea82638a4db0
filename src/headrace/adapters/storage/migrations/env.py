"""What Alembic runs: it is handed a connection in a transaction, and decides nothing else.

To write the next step: change `schema.py`, then write `versions/v0002_….py` by hand (additions first; what is no longer used is
dropped one release later), and let the tests compare the two.
"""

from __future__ import annotations

from alembic import context

from headrace.adapters.storage.schema import METADATA

VERSION_TABLE = "headrace_schema"

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table=VERSION_TABLE,
    transactional_ddl=True,  # on SQLite, too: the transaction was begun by us
)
context.run_migrations()
