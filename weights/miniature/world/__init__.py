"""The drawn world: scenes, how they are painted, and the edits whose right answer is known."""
