"""What Inkwell costs and gains against the same API that writes straight to Postgres; `make bench`."""
