"""The HTTP side: reads come from Postgres, writes leave as commands on RabbitMQ."""
