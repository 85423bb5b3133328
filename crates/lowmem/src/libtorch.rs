//! Readies libtorch before anything computes: its CUDA library is loaded (see `cuda`), its vector functions are settled, and memory
//! that is freed is kept for the next tensor.
//!
//! Libtorch hands `exp`, `ln`, `tanh`, `erf`, `sqrt` and eleven more functions over contiguous f32 and f64 to MKL's vector
//! library. Its first call finds out which kernels suit the processor, and stores the answer twice in one variable, which no
//! lock guards: first the processor's number as the rest of MKL counts, then the number as the vector library counts. A
//! thread that enters between the two stores takes the first for the second. Kernels lie in one table, those of each
//! accuracy one after the other, so a number that is too large is that of a kernel of *lower accuracy*: with AVX-512 the
//! thread's half of the tensor is wrong by 1e-4 of its value instead of 6e-8. On processors whose two numbers agree
//! (those that are not Intel's among them) nothing happens.
//!
//! Every function goes through that variable, and whichever is called first settles it for all. So one small call on one
//! thread is enough, and it has to come before any call that libtorch splits over threads.
//!
//! The allocator of the GNU C library gives large blocks back to the system when they are freed, and the next one comes as zeroed
//! pages, each after a fault: up to an eighth of a forward over 512 tokens. What is large it learns from the largest block that
//! was freed so far, 32 MiB at most (`mallopt(3)`, "dynamic mmap threshold"). One block of that size, which nobody writes to and which
//! so takes no memory, teaches it at once. Other allocators do not mind.

use std::sync::Once;

use tch::{Device, Kind, TchError, Tensor};

use crate::cuda::cuda_library;

/// Set to anything, this leaves the vector functions unsettled, so that the fault can be looked for.
const SKIP: &str = "TRANSFORMER_UTILS_UNPREPARED";

/// Bytes of the largest block that the allocator can learn to keep: with what it adds, just below 32 MiB.
const LARGEST_KEPT: i64 = (32 << 20) - (8 << 10);

/// Readies libtorch, once in a process; later calls return at once.
///
/// Everything in these crates that computes comes through here: opening a model or [`Parts`](crate::Parts), products, lenses.
/// Call it yourself, before threads compute, where a program uses libtorch *before* it uses these crates: without it, the
/// first `exp`, `ln`, `tanh` (and the like) of more than 2048 elements is wrong by 1e-4 in some processes on Intel
/// processors. And before libtorch is asked for CUDA: it looks once for its CUDA library, which is loaded here
/// ([`cuda_library`](crate::cuda_library)). From then on, where the C library is GNU's, blocks of up to 32 MiB that are freed stay with the
/// process, 64 MiB at the end of its heap at most, instead of going back to the system each time.
pub fn prepare_libtorch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // If it does not load, there is no CUDA, and whoever wants to know why asks for it again.
        let _ = cuda_library();
        if std::env::var_os(SKIP).is_none() {
            // Eight numbers need no memory worth naming. If they cannot be had, the next tensor says so.
            let _ = settle();
        }
        let _ = Tensor::f_empty([LARGEST_KEPT], (Kind::Uint8, Device::Cpu));
    });
}

/// Calls every vectorised function that these crates use, on so few numbers that one thread does it.
fn settle() -> Result<(), TchError> {
    for kind in [Kind::Float, Kind::Double] {
        let ones = Tensor::f_ones([8], (kind, Device::Cpu))?;
        let _results =
            [ones.f_exp()?, ones.f_log()?, ones.f_tanh()?, ones.f_erf()?, ones.f_sqrt()?, ones.f_sin()?, ones.f_cos()?];
    }
    Ok(())
}
