"""What deciding costs by itself: a key looked up, limits held, a place given and taken back, without any socket."""
