//! Activation functions, named as in Hugging Face's `ACT2FN`.

use tch::{TchError, Tensor};

use crate::{Error, Result};

/// The non-linearity of an MLP.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Activation {
    /// `x Φ(x)`, exact (Hendrycks and Gimpel, 2016).
    Gelu,
    /// The tanh approximation of [`Activation::Gelu`]: `gelu_new`, `gelu_fast` and `gelu_pytorch_tanh` all mean it.
    GeluTanh,
    /// `x σ(1.702 x)`.
    QuickGelu,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)²` (So et al., 2021).
    Relu2,
    /// `min(max(x, 0), 6)`.
    Relu6,
    /// `x σ(x)`, also known as swish.
    Silu,
    /// `x σ(slope · x)` (Ramachandran et al., 2017).
    Swish {
        /// The slope.
        slope: f64,
    },
    /// `tanh x`.
    Tanh,
    /// `σ(x)`.
    Sigmoid,
    /// `x tanh(ln(1 + eˣ))` (Misra, 2019).
    Mish,
    /// The identity.
    Linear,
}

const NAMES: [(&str, Activation); 16] = [
    ("gelu", Activation::Gelu),
    ("gelu_python", Activation::Gelu),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("gelu_python_tanh", Activation::GeluTanh),
    ("quick_gelu", Activation::QuickGelu),
    ("relu", Activation::Relu),
    ("relu2", Activation::Relu2),
    ("relu6", Activation::Relu6),
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("tanh", Activation::Tanh),
    ("sigmoid", Activation::Sigmoid),
    ("mish", Activation::Mish),
    ("linear", Activation::Linear),
];

impl Activation {
    /// The activation of a config's `activation_function`.
    ///
    /// # Errors
    ///
    /// [`Error::UnsupportedSetting`] listing the known names.
    pub fn from_name(name: &str) -> Result<Self> {
        let found = NAMES.iter().find(|(known, _)| *known == name);
        found.map(|(_, activation)| *activation).ok_or_else(|| Error::UnsupportedSetting {
            setting: "activation_function",
            found: name.to_owned(),
            supported: NAMES.map(|(known, _)| known).join(", "),
        })
    }

    /// Applies the function to a tensor that nobody else has, in its own memory where that is possible: fresh memory costs page faults.
    /// The bits are those of [`Activation::apply`].
    pub(crate) fn apply_in_place(self, mut x: Tensor) -> Result<Tensor, TchError> {
        if x.requires_grad() {
            return self.apply(&x);
        }
        match self {
            Self::Gelu => x.f_gelu_("none"),
            Self::GeluTanh => x.f_gelu_("tanh"),
            Self::Relu => x.f_relu_(),
            Self::Silu => x.f_silu_(),
            _ => self.apply(&x),
        }
    }

    /// Applies the function element by element.
    pub(crate) fn apply(self, x: &Tensor) -> Result<Tensor, TchError> {
        match self {
            Self::Gelu => x.f_gelu("none"),
            Self::GeluTanh => x.f_gelu("tanh"),
            Self::QuickGelu => x.f_mul_scalar(1.702)?.f_sigmoid()?.f_mul(x),
            Self::Relu => x.f_relu(),
            Self::Relu2 => x.f_relu()?.f_square(),
            Self::Relu6 => x.f_relu6(),
            Self::Silu => x.f_silu(),
            Self::Swish { slope } => x.f_mul_scalar(slope)?.f_sigmoid()?.f_mul(x),
            Self::Tanh => x.f_tanh(),
            Self::Sigmoid => x.f_sigmoid(),
            Self::Mish => x.f_mish(),
            Self::Linear => Ok(x.shallow_clone()),
        }
    }
}
