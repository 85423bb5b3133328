//! The flags that change what a model computes.

use std::fmt;

use anyhow::{Context, Result};
use clap::Args;
use transformer_utils::{edits::EditText, partial::Edit};

/// Changes to values on their way through the model.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Edits")]
pub struct EditFlags {
    /// Change the value at a name: h.3.attn.z:heads=0,2=zero. Repeatable; applied in this order.
    ///
    /// Between name and =: positions=A..B (B excluded; A.., ..B; counted from each row's first token), new (tokens that generation
    /// adds), heads=0,2. After it: zero, mean, scale:F, add:FILE:TENSOR*F, replace:FILE:TENSOR*F (*F may be left out).
    #[arg(long = "edit", value_name = "NAME[:WHERE]=ACTION")]
    edits: Vec<EditText>,

    /// Add a stored direction at a name: h.12=direction.safetensors:name*4.0, short for --edit h.12=add:.... Repeatable; applied
    /// after --edit.
    #[arg(long = "steer", value_name = "NAME[:WHERE]=FILE:TENSOR*F", value_parser = EditText::steer)]
    steers: Vec<EditText>,
}

impl EditFlags {
    /// All edits in their order.
    pub fn all(&self) -> impl Iterator<Item = &EditText> {
        self.edits.iter().chain(&self.steers)
    }

    /// Whether there are any.
    pub fn is_given(&self) -> bool {
        self.all().next().is_some()
    }

    /// Sites and edits, with the tensors that they name.
    ///
    /// # Errors
    ///
    /// A file or a tensor that is not there.
    pub fn read(&self) -> Result<Vec<(String, Edit)>> {
        let read = |edit: &EditText| {
            let read = edit.read().with_context(|| format!("reading the edit {edit}"))?;
            Ok((edit.site().to_owned(), read))
        };
        self.all().map(read).collect()
    }
}

/// The edits with commas, as they would be typed.
impl fmt::Display for EditFlags {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.all().map(ToString::to_string).collect();
        formatter.write_str(&all.join(", "))
    }
}
