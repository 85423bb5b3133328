//! Parquet files of activations.

#[cfg(feature = "parquet")]
mod columns;
#[cfg(feature = "parquet")]
pub use columns::Parquet;
#[cfg(feature = "parquet")]
pub(super) use columns::read_record;

/// What a file says of its unit.
#[cfg(not(feature = "parquet"))]
pub(super) fn read_record(object: &super::place::Place, _: u64) -> super::Result<super::record::UnitRecord> {
    Err(super::Error::NeedsFeature { place: object.to_string(), feature: "parquet" })
}
