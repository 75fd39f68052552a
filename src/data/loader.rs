//! Threads between shards and batches.
