"""The pages on `/`: hand-written modules and styles in `static`, and the JSON that they read."""
