"""Images on disk: download, check, decode once, small pictures."""
