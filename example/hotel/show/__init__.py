"""The demo's parts: the story, what is promised of it, and the screen. Imported when Django has been set up."""
