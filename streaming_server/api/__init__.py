"""The HTTP dialects, and what they share: requests, responses, errors, middleware."""
