"""The line from queue to acknowledgement; joins broker and store."""
