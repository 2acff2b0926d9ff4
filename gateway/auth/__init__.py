"""Authentication, passwords, tokens and throttles."""
