"""Alembic migrations: `alembic upgrade head` brings a database to this version's schema."""
