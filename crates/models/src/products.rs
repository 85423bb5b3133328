//! Which library multiplies on the CPU, by what the processor is.

use std::{env, fmt, sync::OnceLock};

use tch::utils;

use crate::{Error, Result};

/// Forces how products are computed on the CPU, to measure: some of [`WORDS`], with commas between them.
const VARIABLE: &str = "TRANSFORMER_UTILS_PRODUCTS";

const WORDS: [&str; 4] = ["blas", "onednn", "bf16-native", "bf16-widened"];

/// From so many rows on, a product of widened bf16 weights wins over libtorch's own where there are no bf16 instructions: those
/// reach 150 GFLOP/s on two cores at most (50 without oneDNN, which asks for AVX-512), f32 more than 300; widening costs about
/// what 20 rows cost.
const WIDEN_FROM: i64 = 32;

/// A library that multiplies matrices of f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Library {
    /// The BLAS that libtorch was built with, which is MKL in the published ones for x86.
    Blas,
    /// oneDNN, which libtorch brings for bf16, and which takes f32 as well.
    OneDnn,
}

impl fmt::Display for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Blas => "BLAS",
            Self::OneDnn => "oneDNN",
        })
    }
}

/// How products are computed on this machine's CPU; see [`Factor`](crate::Factor) for what they are used for.
///
/// | processor | f32 | bf16 |
/// |---|---|---|
/// | Intel | BLAS | libtorch's own, which is oneDNN's |
/// | x86 of others | oneDNN | the same |
/// | not x86 | libtorch's own choice | libtorch's own choice |
/// | x86 without bf16 instructions | | libtorch's own, from 32 rows on widened to f32 slice by slice |
///
/// MKL favours Intel's processors: for 45 rows it reaches 1.4 to 2 times oneDNN's speed there, and half to a third of it on
/// AMD's. The choice depends on the processor, dtypes, rows and layouts, never on a clock, so a machine gives the same bits
/// each time. The environment variable `TRANSFORMER_UTILS_PRODUCTS` forces another, to measure it: `blas` or `onednn` for f32,
/// `bf16-native` or `bf16-widened`, or one of each with a comma between them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Products {
    /// Who multiplies f32.
    pub library: Library,
    /// From how many rows on bf16 is multiplied as f32, if at all.
    pub widen_from: Option<i64>,
    /// Why.
    pub reason: String,
}

impl Products {
    /// The choice for this machine, made once in a process.
    ///
    /// # Errors
    ///
    /// [`Error::Products`] if `TRANSFORMER_UTILS_PRODUCTS` is set to something else.
    pub fn chosen() -> Result<&'static Self> {
        static CHOSEN: OnceLock<std::result::Result<Products, String>> = OnceLock::new();
        let chosen = CHOSEN.get_or_init(|| {
            let forced = env::var_os(VARIABLE).map(|value| value.to_string_lossy().into_owned());
            choose(&Processor::here(), utils::has_mkl(), utils::has_mkldnn(), forced.as_deref())
        });
        chosen.as_ref().map_err(|found| Error::Products { variable: VARIABLE, found: found.clone() })
    }
}

/// What decides.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Processor {
    /// `GenuineIntel`, `AuthenticAMD`, ...; empty where there is no such name.
    vendor: String,
    x86: bool,
    bf16: bool,
}

impl Processor {
    #[cfg(target_arch = "x86_64")]
    fn here() -> Self {
        let vendor = raw_cpuid::CpuId::new().get_vendor_info().map(|vendor| vendor.as_str().to_owned());
        // AMX is not asked for: every processor with it has AVX-512 bf16, too.
        Self { vendor: vendor.unwrap_or_default(), x86: true, bf16: is_x86_feature_detected!("avx512bf16") }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn here() -> Self {
        Self { vendor: String::new(), x86: false, bf16: false }
    }
}

/// The choice, or the forced value that is none.
fn choose(
    processor: &Processor,
    has_mkl: bool,
    has_onednn: bool,
    forced: Option<&str>,
) -> std::result::Result<Products, String> {
    let words: Vec<&str> = forced.map(|forced| forced.split(',').map(str::trim).collect()).unwrap_or_default();
    if let (Some(forced), false) = (forced, words.iter().all(|word| WORDS.contains(word))) {
        return Err(forced.to_owned());
    }
    let says = |word| words.contains(&word);
    let forced = || format!("{VARIABLE} says so");
    let (library, reason) = if !has_onednn {
        (Library::Blas, "this libtorch has no oneDNN".to_owned())
    } else if says("onednn") {
        (Library::OneDnn, forced())
    } else if says("blas") {
        (Library::Blas, forced())
    } else if !processor.x86 {
        (Library::Blas, "libtorch chooses by itself".to_owned())
    } else if processor.vendor == "GenuineIntel" && has_mkl {
        (Library::Blas, "MKL is the faster on Intel".to_owned())
    } else {
        (Library::OneDnn, format!("the faster on {}", vendor(&processor.vendor)))
    };
    let native = !processor.x86 || processor.bf16 || says("bf16-native");
    let widen_from = if native && !says("bf16-widened") { None } else { Some(WIDEN_FROM) };
    Ok(Products { library, widen_from, reason })
}

fn vendor(name: &str) -> &str {
    match name {
        "AuthenticAMD" => "AMD",
        "GenuineIntel" => "Intel, where this libtorch's BLAS is not MKL",
        "" => "this processor",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processor(vendor: &str, bf16: bool) -> Processor {
        Processor { vendor: vendor.to_owned(), x86: true, bf16 }
    }

    #[test]
    fn the_choice_follows_the_table() {
        let chosen = |processor: &Processor| {
            let products = choose(processor, true, true, None).unwrap();
            (products.library, products.widen_from)
        };
        assert_eq!(chosen(&processor("GenuineIntel", true)), (Library::Blas, None));
        assert_eq!(chosen(&processor("GenuineIntel", false)), (Library::Blas, Some(32)));
        assert_eq!(chosen(&processor("AuthenticAMD", true)), (Library::OneDnn, None));
        assert_eq!(chosen(&processor("AuthenticAMD", false)), (Library::OneDnn, Some(32)));
        assert_eq!(chosen(&processor("HygonGenuine", false)), (Library::OneDnn, Some(32)));
        let arm = Processor { vendor: String::new(), x86: false, bf16: false };
        assert_eq!(chosen(&arm), (Library::Blas, None));
    }

    #[test]
    fn what_libtorch_lacks_is_not_chosen() {
        let (intel, amd) = (processor("GenuineIntel", true), processor("AuthenticAMD", true));
        assert_eq!(choose(&intel, false, true, None).unwrap().library, Library::OneDnn);
        assert_eq!(choose(&amd, true, false, None).unwrap().library, Library::Blas);
        assert_eq!(choose(&amd, true, false, Some("onednn")).unwrap().library, Library::Blas);
    }

    #[test]
    fn a_forced_library_wins_and_another_word_is_refused() {
        let (intel, amd) = (processor("GenuineIntel", true), processor("AuthenticAMD", true));
        assert_eq!(choose(&intel, true, true, Some("onednn")).unwrap().library, Library::OneDnn);
        assert_eq!(choose(&amd, true, true, Some("blas")).unwrap().library, Library::Blas);
        assert_eq!(choose(&amd, true, true, Some("bf16-widened")).unwrap().widen_from, Some(32));
        assert_eq!(choose(&amd, true, true, Some("bf16-widened")).unwrap().library, Library::OneDnn);
        let both = choose(&processor("GenuineIntel", false), true, true, Some("onednn, bf16-native")).unwrap();
        assert_eq!((both.library, both.widen_from), (Library::OneDnn, None));
        for word in ["mkl", "", "blas,"] {
            assert_eq!(choose(&amd, true, true, Some(word)), Err(word.to_owned()));
        }
    }
}
