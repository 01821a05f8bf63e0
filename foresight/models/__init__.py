"""The embedded model: its clips, its parts and the recipe it is trained by."""
