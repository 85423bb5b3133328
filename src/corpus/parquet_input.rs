//! Parquet files of texts.

#[cfg(feature = "parquet")]
mod columns;
#[cfg(feature = "parquet")]
pub(super) use columns::{Groups, Source};

#[cfg(not(feature = "parquet"))]
pub(super) use without::Groups;

/// Without the feature no file is read, but what reads files need not know.
#[cfg(not(feature = "parquet"))]
mod without {
    use std::{convert::Infallible, ops::Range};

    use crate::corpus::{
        corpus::{File, Options, Span},
        error::{Error, Result},
        records::Record,
    };

    pub(in crate::corpus) struct Groups(Infallible);

    impl Groups {
        pub(in crate::corpus) fn open(file: &File, _: &Options) -> Result<Self> {
            Err(Error::NeedsFeature { place: file.place.to_string(), feature: "parquet" })
        }

        pub(in crate::corpus) fn spans(&self, _: usize, _: u64) -> Vec<Span> {
            match self.0 {}
        }

        pub(in crate::corpus) fn read(&mut self, _: usize, _: u64, _: Range<u64>) -> Result<Vec<Record>> {
            match self.0 {}
        }
    }
}
