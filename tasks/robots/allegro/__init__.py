"""The Allegro hand."""
