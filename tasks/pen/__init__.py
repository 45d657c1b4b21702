"""Tasks of a pen in the Allegro hand."""
