"""What a person sees of a run: figures, lines, the live view, and the blocks around them."""
