"""The demo: its story, the promises that it checks, and its output. Imported after Django is set up."""
