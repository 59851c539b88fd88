"""The user's side: models folder, hub, settings. Knows nothing of answers."""
