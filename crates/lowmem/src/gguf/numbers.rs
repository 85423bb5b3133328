//! Conversions of single numbers, written without branches so that loops over them use vector instructions.

/// The exact value of f16 bits.
#[inline(always)]
pub(crate) fn f16_to_f32(bits: u16) -> f32 {
    let (sign, magnitude) = ((u32::from(bits) & 0x8000) << 16, u32::from(bits) & 0x7fff);
    let exponent = magnitude & 0x7c00;
    // The exponent's bias goes from 15 to 127, or stays at the top for infinities and NaNs.
    let normal = (magnitude << 13) + if exponent == 0x7c00 { (255 - 31) << 23 } else { (127 - 15) << 23 };
    // A denormal is a whole number of 2^-24: beside 2^-14 it is exact, and the difference is too.
    let denormal = f32::from_bits((magnitude << 13) + (113 << 23)) - f32::from_bits(113 << 23);
    f32::from_bits(sign | if exponent == 0 { denormal.to_bits() } else { normal })
}

/// The f16 nearest to a number, to even where two are; NaNs stay NaNs.
#[inline(always)]
pub(crate) fn f32_to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let (sign, magnitude) = ((bits >> 16) & 0x8000, bits & 0x7fff_ffff);
    let normal = magnitude.wrapping_add(0xfff + ((magnitude >> 13) & 1)).wrapping_sub(112 << 23) >> 13;
    // Beside 1/2 the last bit of an f32 is worth the last bit of a denormal f16.
    let denormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5_f32.to_bits());
    let nan = 0x7e00 | ((magnitude >> 13) & 0x1ff);
    let rounded = if magnitude < 113 << 23 { denormal } else { normal };
    let finite_or_infinite = if magnitude >= 143 << 23 { 0x7c00 } else { rounded };
    (sign | if magnitude > 0x7f80_0000 { nan } else { finite_or_infinite }) as u16
}

/// The value of bf16 bits.
#[inline(always)]
pub(crate) fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The bf16 nearest to a number, to even where two are; NaNs stay NaNs.
#[inline(always)]
pub(crate) fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let nan = (bits >> 16) | 0x40;
    (if bits & 0x7fff_ffff > 0x7f80_0000 { nan } else { rounded }) as u16
}

/// A kind of number to write.
pub(super) trait Number {
    /// What it is stored as.
    type Stored: Send;

    fn of(value: f32) -> Self::Stored;
}

/// f32 as it is.
pub(super) struct Single;
/// The bits of a bf16.
pub(super) struct Brain;
/// The bits of an f16.
pub(super) struct Half;

impl Number for Single {
    type Stored = f32;

    #[inline(always)]
    fn of(value: f32) -> f32 {
        value
    }
}

impl Number for Brain {
    type Stored = u16;

    #[inline(always)]
    fn of(value: f32) -> u16 {
        f32_to_bf16(value)
    }
}

impl Number for Half {
    type Stored = u16;

    #[inline(always)]
    fn of(value: f32) -> u16 {
        f32_to_f16(value)
    }
}
