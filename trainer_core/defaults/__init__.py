"""The core's own answers: registered like anyone's, and nothing that a plugin could not replace."""
