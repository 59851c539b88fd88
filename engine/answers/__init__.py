"""Answers: generation, speculation, batches and their journal, chats, sessions, statistics. Knows nothing of the command line."""
