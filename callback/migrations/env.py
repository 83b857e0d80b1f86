"""Alembic's entry: migrates over the connection that `Store.prepare` passes, or over `-x url=...`."""

import sqlalchemy as sa
from alembic import context

from callback.schema import metadata


def _migrate(connection: sa.Connection) -> None:
    context.configure(connection=connection, target_metadata=metadata, transactional_ddl=False)
    context.run_migrations()


_connection = context.config.attributes.get("connection")
if _connection is not None:
    _migrate(_connection)
else:
    with sa.create_engine(context.get_x_argument(as_dictionary=True)["url"]).begin() as _own_connection:
        _migrate(_own_connection)
