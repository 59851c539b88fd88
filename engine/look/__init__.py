"""Looking inside: every number of the pass as an array, hooks that change it, lenses, attribution, pictures. The methods of `Model` for it are in face.py."""
