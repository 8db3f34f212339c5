"""Many pictures: numbered shards, each a pure function of the settings, made anywhere, in any order, and again."""
