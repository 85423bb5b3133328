//! Objects in stores: S3, Google Cloud Storage, Azure, and files by their address.

#[cfg(feature = "object-store")]
#[cfg(test)]
mod lossy;
#[cfg(feature = "object-store")]
mod store;
#[cfg(feature = "object-store")]
pub(super) use store::Object;

#[cfg(not(feature = "object-store"))]
pub(super) use without::Object;

/// Without the feature there are no objects, but what handles them need not know.
#[cfg(not(feature = "object-store"))]
mod without {
    use std::{convert::Infallible, fmt, io, ops::Range};

    use crate::corpus::{
        error::{Error, Result},
        place::Listed,
    };

    #[derive(Clone, Debug)]
    pub(in crate::corpus) struct Object(Infallible);

    impl fmt::Display for Object {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            match self.0 {}
        }
    }

    impl Object {
        pub(in crate::corpus) fn parse(address: &str) -> Result<Self> {
            Err(Error::NeedsFeature { place: address.to_owned(), feature: "object-store" })
        }

        pub(in crate::corpus) fn join(&self, _: &str) -> Self {
            match self.0 {}
        }

        pub(in crate::corpus) fn name(&self) -> String {
            match self.0 {}
        }

        pub(in crate::corpus) fn size(&self) -> Result<Option<u64>> {
            match self.0 {}
        }

        pub(in crate::corpus) fn read(&self) -> Result<Option<Vec<u8>>> {
            match self.0 {}
        }

        pub(in crate::corpus) fn range(&self, _: Range<u64>) -> io::Result<Vec<u8>> {
            match self.0 {}
        }

        pub(in crate::corpus) fn reader(&self, _: u64, _: u64, _: u64) -> io::Empty {
            match self.0 {}
        }

        pub(in crate::corpus) fn list(&self) -> Result<Vec<Listed>> {
            match self.0 {}
        }

        pub(in crate::corpus) fn write(&self, _: Vec<Vec<u8>>) -> Result<()> {
            match self.0 {}
        }

        pub(in crate::corpus) fn create(&self, _: &[u8]) -> Result<bool> {
            match self.0 {}
        }

        pub(in crate::corpus) fn remove(&self) -> Result<()> {
            match self.0 {}
        }
    }
}
