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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_and_every_border_between_two() {
        let all: Vec<f32> = (0..=u16::MAX).map(f16_to_f32).collect();
        for (bits, &value) in (0..=u16::MAX).zip(&all) {
            let expected = half::f16::from_bits(bits).to_f32();
            assert!(
                value.to_bits() == expected.to_bits() || value.is_nan() && expected.is_nan(),
                "{bits:#x}: {value:e}"
            );
        }
        // Half-way between neighbours, and the f32 on either side of that.
        let middles = all.windows(2).filter(|pair| pair[0].is_finite() && pair[1].is_finite());
        let values = middles
            .map(|pair| (pair[0] + pair[1]) / 2.0)
            .chain([65_519.996, 65_520.0, 65_535.996, 65_536.0, f32::MAX, f32::MIN_POSITIVE, 1e-45])
            .flat_map(|value| [value.next_down(), value, value.next_up(), -value]);
        for value in values {
            assert_eq!(f32_to_f16(value), half::f16::from_f32(value).to_bits(), "{value:e}");
            assert_eq!(f32_to_bf16(value), half::bf16::from_f32(value).to_bits(), "{value:e}");
        }
        let not_a_number = (f16_to_f32(f32_to_f16(f32::NAN)), bf16_to_f32(f32_to_bf16(f32::NAN)));
        assert!(not_a_number.0.is_nan() && not_a_number.1.is_nan());
    }
}
