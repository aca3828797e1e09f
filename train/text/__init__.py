"""The text recipe: pinned packages in, token shards and episode text out."""
