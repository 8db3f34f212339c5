"""Many pictures, in numbered shards. A shard is a pure function of the settings and its number."""
