//! `roclip-train`: trains CLIP on shards.
fn main() {}
