//! What is asked for: tensors by name and shape, part by part.

/// One tensor that a part needs, by its name in the checkpoint and the shape it must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorRequest {
    /// The name in the checkpoint.
    pub name: String,
    /// The shape it must have.
    pub shape: Vec<i64>,
    /// Another tensor of the parts that it is to be one with, see [`TensorRequest::tied_to`].
    pub tied_to: Option<String>,
    /// Which slice of the stored tensor it is, see [`TensorRequest::slice_of`].
    pub slice: Option<Slice>,
}

/// One of the equal slices that the first dimension of a tensor counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Which one.
    pub index: i64,
    /// How many there must be.
    pub count: i64,
}

impl TensorRequest {
    /// A request for the tensor `name` of that shape.
    pub fn new(name: impl Into<String>, shape: impl Into<Vec<i64>>) -> Self {
        Self { name: name.into(), shape: shape.into(), tied_to: None, slice: None }
    }

    /// A request for slice `index` of the tensor `name`, whose first dimension is `count` and whose others are `shape`. It is
    /// placed without the other slices.
    pub fn slice_of(name: impl Into<String>, index: i64, count: i64, shape: impl Into<Vec<i64>>) -> Self {
        Self { slice: Some(Slice { index, count }), ..Self::new(name, shape) }
    }

    /// The shape that the stored tensor must have.
    pub fn stored_shape(&self) -> Vec<i64> {
        self.slice.iter().map(|slice| slice.count).chain(self.shape.iter().copied()).collect()
    }

    /// What it is called once it is placed: its name, and which slice it is.
    pub(crate) fn label(&self) -> String {
        match self.slice {
            Some(slice) => format!("{}[{}]", self.name, slice.index),
            None => self.name.clone(),
        }
    }

    /// Asks for one tensor in memory where this one and `other`, of the same shape and requested too, have the same values
    /// in the dtype of the run. Where they differ each stays what it is, and the report says so: what Hugging Face does
    /// with tied weights of which a checkpoint holds both.
    #[must_use]
    pub fn tied_to(self, other: impl Into<String>) -> Self {
        Self { tied_to: Some(other.into()), ..self }
    }
}

/// Tensors that are needed together, such as one block of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartRequest {
    /// What people call the part.
    pub label: String,
    /// Its tensors, in the order in which [`Parts::get`](crate::Parts::get) returns them.
    pub tensors: Vec<TensorRequest>,
}
