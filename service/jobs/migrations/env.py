"""Alembic's entry: migrates over the connection that `Database` gives it."""

from __future__ import annotations

from alembic import context

from service.jobs.tables import Base

connection = context.config.attributes["connection"]
if connection.dialect.name == "postgresql":  # one server migrates at a time; SQLite has one writer anyway
    connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7305)")
context.configure(connection=connection, target_metadata=Base.metadata)
context.run_migrations()
