//! The version of the lens JSON.

/// The number in the `schema` field of the JSON this version reads and writes.
pub const SCHEMA: u32 = 1;
