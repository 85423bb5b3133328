//! Rotary positions (Su et al., 2021): queries and keys are rotated by angles that grow with the position, so that their
//! products depend on how far apart they are.

use std::cell::RefCell;

use tch::{Device, Kind, TchError, Tensor};

use crate::{Result, architecture::number, row};

/// How positions rotate queries and keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// How many of a head's dimensions, the first ones, are rotated; an even number.
    pub dimensions: i64,
    /// Pair `i` of `n` turns by `position · base^(-i/n)`.
    pub base: f64,
    /// Which dimensions are pairs.
    pub pairs: RotaryPairs,
    /// How the angles were changed for longer texts.
    pub scaling: RotaryScaling,
    /// Whether it computes at least in f32, and rounds once.
    pub in_f32: bool,
    /// Whether Hugging Face has a module that computes the cosines, so that they are a site.
    pub module: RotaryModule,
}

/// What Hugging Face's module for rotary positions gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RotaryModule {
    /// There is none.
    None,
    /// The cosine of each rotated dimension.
    EachDimension,
    /// The cosine of each pair of dimensions.
    EachPair,
}

/// Which dimensions are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RotaryPairs {
    /// `i` and `i + n`: the halves.
    Halves,
    /// `2 i` and `2 i + 1`: neighbours.
    Neighbours,
}

/// How the angles were changed for texts longer than those of the first training.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum RotaryScaling {
    /// Not at all.
    None,
    /// All angles are divided by a factor (Chen et al., 2023).
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Slow angles are divided by a factor, fast ones are not, those between in part (Llama 3.1).
    Llama3 {
        /// The factor.
        factor: f64,
        /// Wavelengths longer than `original / low_frequency` are slow.
        low_frequency: f64,
        /// Wavelengths shorter than `original / high_frequency` are fast.
        high_frequency: f64,
        /// Context of the first training.
        original: f64,
    },
    /// As [`RotaryScaling::Llama3`], by a ramp over the pairs, and the result is scaled (YaRN: Peng et al., 2023).
    Yarn {
        /// The factor.
        factor: f64,
        /// Turns within the original context from which on a pair is fast.
        fast: f64,
        /// Turns up to which it is slow.
        slow: f64,
        /// Context of the first training.
        original: f64,
        /// Whether the ends of the ramp are whole pairs.
        truncate: bool,
        /// What cosines and sines are multiplied by.
        magnitude: f64,
    },
    /// Every pair is divided by a factor of its own, other ones for long texts (LongRoPE: Ding et al., 2024).
    Long {
        /// Factors of texts within the original context.
        short: Vec<f64>,
        /// Factors of longer texts.
        long: Vec<f64>,
        /// Context of the first training: a run is long where its last position is beyond.
        original: i64,
        /// What cosines and sines are multiplied by.
        magnitude: f64,
    },
    /// The base grows with the run's last position, where that is beyond the context.
    Dynamic {
        /// How fast.
        factor: f64,
        /// The context.
        context: i64,
    },
}

impl Rotary {
    pub(crate) fn check(&self, d_head: i64) -> Result<()> {
        if !(2..=d_head).contains(&self.dimensions) || self.dimensions % 2 != 0 {
            return Err(number("the number of rotated dimensions", self.dimensions, format!("even, 2 to {d_head}")));
        }
        let positive = |field, value: f64| {
            if value.is_finite() && value > 0.0 { Ok(()) } else { Err(number(field, value, "a finite number above 0")) }
        };
        positive("the base of the rotation", self.base)?;
        match &self.scaling {
            RotaryScaling::None => Ok(()),
            RotaryScaling::Linear { factor } => positive("the rotation's factor", *factor),
            RotaryScaling::Dynamic { factor, context } => {
                positive("the rotation's factor", *factor)?;
                positive("the context", *context as f64)
            }
            RotaryScaling::Llama3 { factor, low_frequency, high_frequency, original } => {
                positive("the rotation's factor", *factor)?;
                positive("low_freq_factor", *low_frequency)?;
                positive("high_freq_factor", *high_frequency)?;
                positive("original_max_position_embeddings", *original)
            }
            RotaryScaling::Yarn { factor, fast, slow, original, magnitude, .. } => {
                positive("the rotation's factor", *factor)?;
                positive("beta_fast", *fast)?;
                positive("beta_slow", *slow)?;
                positive("original_max_position_embeddings", *original)?;
                positive("attention_factor", *magnitude)
            }
            RotaryScaling::Long { short, long, magnitude, .. } => {
                for factors in [short, long] {
                    if factors.len() as i64 != self.dimensions / 2 {
                        let expected = (self.dimensions / 2).to_string();
                        return Err(number("the number of the rotation's factors", factors.len(), expected));
                    }
                    factors.iter().try_for_each(|&factor| positive("a factor of the rotation", factor))?;
                }
                positive("attention_factor", *magnitude)
            }
        }
    }

    /// How many cosines of a position Hugging Face's module gives.
    pub(crate) fn module_width(&self) -> i64 {
        if self.module == RotaryModule::EachPair { self.dimensions / 2 } else { self.dimensions }
    }

    /// The angle of each pair at position 1, `[dimensions / 2]` in f32, for a run whose last position is `last`.
    ///
    /// In f32 step by step, as Hugging Face computes them: at position 10,000 an angle is then 1e-3 from the exact one, and a
    /// model is trained with that.
    fn frequencies(&self, last: i64) -> Result<Tensor, TchError> {
        let options = (Kind::Float, Device::Cpu);
        let exponents = Tensor::f_arange_start_step(0, self.dimensions, 2, options)?;
        let exponents = exponents.f_div_scalar(self.dimensions)?;
        let powers = |base: f64| Tensor::f_pow_scalar(base, &exponents);
        let plain = || powers(self.base)?.f_reciprocal();
        match &self.scaling {
            RotaryScaling::None => plain(),
            RotaryScaling::Linear { factor } => plain()?.f_div_scalar(*factor),
            RotaryScaling::Dynamic { factor, context } => {
                let (length, context) = ((last + 1).max(*context) as f64, *context as f64);
                let dimensions = self.dimensions as f64;
                let growth = (factor * length / context) - (factor - 1.0);
                powers(self.base * growth.powf(dimensions / (dimensions - 2.0)))?.f_reciprocal()
            }
            RotaryScaling::Llama3 { factor, low_frequency, high_frequency, original } => {
                let plain = plain()?;
                let wavelengths = plain.f_reciprocal()?.f_mul_scalar(std::f64::consts::TAU)?;
                let slow = wavelengths.f_gt(original / low_frequency)?;
                let fast = wavelengths.f_lt(original / high_frequency)?;
                let divided = plain.f_div_scalar(*factor)?;
                let share = wavelengths.f_reciprocal()?.f_mul_scalar(*original)?.f_sub_scalar(*low_frequency)?;
                let share = share.f_div_scalar(high_frequency - low_frequency)?;
                let rest = share.f_neg()?.f_add_scalar(1.0)?;
                let between = rest.f_mul(&divided)?.f_add(&share.f_mul(&plain)?)?;
                let of_slow = divided.f_where_self(&slow, &plain)?;
                between.f_where_self(&slow.f_logical_or(&fast)?.f_logical_not()?, &of_slow)
            }
            RotaryScaling::Yarn { factor, fast, slow, original, truncate, .. } => {
                let dimensions = self.dimensions as f64;
                let pair = |turns: f64| {
                    dimensions * (original / (turns * std::f64::consts::TAU)).ln() / (2.0 * self.base.ln())
                };
                let (mut low, mut high) = (pair(*fast), pair(*slow));
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, mut high) = (low.max(0.0), high.min(dimensions - 1.0));
                if low == high {
                    high += 0.001;
                }
                let pairs = Tensor::f_arange(self.dimensions / 2, options)?;
                let slow = pairs.f_sub_scalar(low)?.f_div_scalar(high - low)?.f_clamp(0.0, 1.0)?;
                let fast = slow.f_neg()?.f_add_scalar(1.0)?;
                let powers = powers(self.base)?;
                let divided = powers.f_mul_scalar(*factor)?.f_reciprocal()?;
                divided.f_mul(&fast.f_neg()?.f_add_scalar(1.0)?)?.f_add(&powers.f_reciprocal()?.f_mul(&fast)?)
            }
            RotaryScaling::Long { short, long, original, .. } => {
                let factors: Vec<f32> =
                    if last >= *original { long } else { short }.iter().map(|&factor| factor as f32).collect();
                Tensor::f_from_slice(&factors)?.f_mul(&powers(self.base)?)?.f_reciprocal()
            }
        }
    }

    /// Which way a run rotates whose last position is `last`: those of the same number rotate alike.
    fn way(&self, last: i64) -> i64 {
        match &self.scaling {
            RotaryScaling::Dynamic { context, .. } => (last + 1).max(*context),
            RotaryScaling::Long { original, .. } => i64::from(last >= *original),
            _ => 0,
        }
    }

    /// What cosines and sines are multiplied by.
    fn magnitude(&self) -> f64 {
        match self.scaling {
            RotaryScaling::Yarn { magnitude, .. } | RotaryScaling::Long { magnitude, .. } => magnitude,
            _ => 1.0,
        }
    }
}

/// Cosines and sines at the positions of one run, `[1 or batch, position, 1, dimensions]`.
struct Turned {
    rotary: Rotary,
    cosines: Tensor,
    /// With the sign of the dimension whose partner they multiply.
    sines: Tensor,
}

impl Turned {
    fn new(rotary: &Rotary, positions: &Tensor, last: i64, kind: Kind) -> Result<Self, TchError> {
        let frequencies = rotary.frequencies(last)?.f_to_device(positions.device())?;
        let angles = positions.f_to_kind(Kind::Float)?.f_unsqueeze(-1)?.f_mul(&frequencies)?;
        let magnitude = rotary.magnitude();
        let narrow = matches!(kind, Kind::BFloat16 | Kind::Half);
        let kind = if rotary.in_f32 && narrow { Kind::Float } else { kind };
        let finish = |tensor: Tensor| {
            let scaled = if magnitude == 1.0 { tensor } else { tensor.f_mul_scalar(magnitude)? };
            scaled.f_to_kind(kind)
        };
        let (cosines, sines) = (finish(angles.f_cos()?)?, finish(angles.f_sin()?)?);
        let opposite = sines.f_neg()?;
        let both = |first: &Tensor, second: &Tensor| {
            let both = match rotary.pairs {
                RotaryPairs::Halves => Tensor::f_cat(&[first, second], -1)?,
                RotaryPairs::Neighbours => Tensor::f_stack(&[first, second], -1)?.f_flatten(-2, -1)?,
            };
            both.f_unsqueeze(2)
        };
        Ok(Self { rotary: rotary.clone(), cosines: both(&cosines, &cosines)?, sines: both(&opposite, &sines)? })
    }

    /// `[batch, position, head, d_head]`, rotated.
    fn apply(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let d_head = x.size().last().copied().unwrap_or(0);
        let dimensions = self.rotary.dimensions;
        let turning = if dimensions == d_head { x.shallow_clone() } else { x.f_narrow(-1, 0, dimensions)? };
        let partners = match self.rotary.pairs {
            RotaryPairs::Halves => turning.f_roll([dimensions / 2].as_slice(), [-1].as_slice())?,
            RotaryPairs::Neighbours => {
                turning.f_unflatten(-1, [dimensions / 2, 2].as_slice())?.f_flip([-1].as_slice())?.f_flatten(-2, -1)?
            }
        };
        // Not in place: gradients may be recorded.
        let turned = turning.f_mul(&self.cosines)?.f_add(&partners.f_mul(&self.sines)?)?.f_to_kind(x.f_kind()?)?;
        if dimensions == d_head {
            return Ok(turned);
        }
        Tensor::f_cat(&[turned, x.f_narrow(-1, dimensions, d_head - dimensions)?], -1)
    }
}

impl Turned {
    /// As [`Turned::apply`], for few numbers at one position.
    fn apply_to_row(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let Some(mut numbers) = row::numbers(x)? else { return self.apply(x) };
        let (Some(cosines), Some(sines)) = (row::numbers(&self.cosines)?, row::numbers(&self.sines)?) else {
            return self.apply(x);
        };
        let (d_head, dimensions) = (x.size().last().copied().unwrap_or(0) as usize, self.rotary.dimensions as usize);
        if cosines.len() != dimensions || d_head < dimensions {
            return self.apply(x);
        }
        let half = dimensions / 2;
        for head in numbers.chunks_exact_mut(d_head) {
            for pair in 0..half {
                let (first, second) = match self.rotary.pairs {
                    RotaryPairs::Halves => (pair, pair + half),
                    RotaryPairs::Neighbours => (2 * pair, 2 * pair + 1),
                };
                let (x, y) = (head[first], head[second]);
                head[first] = x * cosines[first] + y * sines[first];
                head[second] = y * cosines[second] + x * sines[second];
            }
        }
        row::like(x, &numbers)
    }
}

/// The rotations of one run, each made when a layer first needs it.
pub(crate) struct Rotations {
    /// `[1 or batch, position]`, on the device of the run.
    positions: Tensor,
    last: i64,
    kind: Kind,
    made: RefCell<Vec<Turned>>,
}

impl Rotations {
    pub(crate) fn new(positions: &Tensor, kind: Kind, device: Device) -> Result<Self, TchError> {
        let last = positions.f_max()?.f_int64_value(&[])?;
        Ok(Self { positions: positions.f_to_device(device)?, last, kind, made: RefCell::new(Vec::new()) })
    }

    /// See [`Rotary::way`].
    pub(crate) fn way(&self, rotary: &Rotary) -> i64 {
        rotary.way(self.last)
    }

    fn with<T>(&self, rotary: &Rotary, then: impl FnOnce(&Turned) -> Result<T, TchError>) -> Result<T, TchError> {
        let mut made = self.made.borrow_mut();
        if let Some(turned) = made.iter().find(|turned| turned.rotary == *rotary) {
            return then(turned);
        }
        let turned = Turned::new(rotary, &self.positions, self.last, self.kind)?;
        let result = then(&turned);
        made.push(turned);
        result
    }

    /// `[batch, position, head, d_head]`, rotated.
    pub(crate) fn apply(&self, rotary: &Rotary, x: &Tensor) -> Result<Tensor, TchError> {
        self.with(rotary, |turned| turned.apply(x))
    }

    /// As [`Rotations::apply`], for few numbers at one position.
    pub(crate) fn apply_to_row(&self, rotary: &Rotary, x: &Tensor) -> Result<Tensor, TchError> {
        self.with(rotary, |turned| turned.apply_to_row(x))
    }

    /// The cosines, `[1 or batch, position, width]`; see [`Rotary::module_width`].
    pub(crate) fn cosines(&self, rotary: &Rotary) -> Result<Tensor, TchError> {
        let width = rotary.module_width();
        self.with(rotary, |turned| turned.cosines.f_squeeze_dim(2)?.f_narrow(-1, 0, width)?.f_contiguous())
    }

    /// Other cosines, `[1 or batch, position, width]`, for all layers that turn alike.
    pub(crate) fn replace_cosines(&self, rotary: &Rotary, cosines: &Tensor) -> Result<(), TchError> {
        let cosines = match rotary.module {
            // Of halves, each dimension's partner turns by the same angle.
            RotaryModule::EachPair => Tensor::f_cat(&[cosines, cosines], -1)?,
            _ => cosines.shallow_clone(),
        };
        let cosines = cosines.f_unsqueeze(2)?;
        let mut made = self.made.borrow_mut();
        made.iter_mut().filter(|turned| turned.rotary == *rotary).for_each(|turned| {
            turned.cosines = cosines.shallow_clone();
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rotary(scaling: RotaryScaling) -> Rotary {
        Rotary {
            dimensions: 8,
            base: 10_000.0,
            pairs: RotaryPairs::Halves,
            scaling,
            in_f32: false,
            module: RotaryModule::EachDimension,
        }
    }

    fn frequencies(rotary: &Rotary, last: i64) -> Vec<f64> {
        let frequencies = rotary.frequencies(last).unwrap().to_kind(Kind::Double);
        (0..rotary.dimensions / 2).map(|pair| frequencies.double_value(&[pair])).collect()
    }

    #[test]
    fn products_depend_on_the_distance_alone() {
        tch::manual_seed(0);
        let x = Tensor::randn([1, 1, 2, 10], (Kind::Double, Device::Cpu));
        for pairs in [RotaryPairs::Halves, RotaryPairs::Neighbours] {
            let rotary = Rotary { pairs, ..rotary(RotaryScaling::None) };
            let at = |position: i64| {
                let positions = Tensor::from_slice(&[position]).view([1, 1]);
                let turned = Rotations::new(&positions, Kind::Double, Device::Cpu).unwrap().apply(&rotary, &x).unwrap();
                // What lies beyond the rotated dimensions stays.
                assert!(turned.narrow(-1, 8, 2).equal(&x.narrow(-1, 8, 2)));
                turned.view([2, 10])
            };
            let product = |first: i64, second: i64| (at(first).select(0, 0) * at(second).select(0, 1)).sum(None);
            let (near, same, far) = (product(5, 2), product(13, 10), product(13, 2));
            assert!(near.allclose(&same, 1e-5, 1e-6, false), "{pairs:?}");
            assert!(!near.allclose(&far, 1e-3, 1e-3, false), "{pairs:?}");
            assert!(at(0).allclose(&x.view([2, 10]), 1e-12, 1e-12, false));
        }
    }

    #[test]
    fn scalings_change_slow_angles_and_not_fast_ones() {
        let plain = frequencies(&rotary(RotaryScaling::None), 0);
        assert!((plain[1] - 0.1).abs() < 1e-7 && (plain[3] - 0.001).abs() < 1e-9);
        let linear = frequencies(&rotary(RotaryScaling::Linear { factor: 4.0 }), 0);
        assert!(plain.iter().zip(&linear).all(|(plain, scaled)| (plain / 4.0 - scaled).abs() < 1e-8));
        let llama = RotaryScaling::Llama3 { factor: 8.0, low_frequency: 1.0, high_frequency: 4.0, original: 200.0 };
        let llama = frequencies(&rotary(llama), 0);
        // Wavelengths 6, 63, 628 and 6283: below 50, between, above 200, above 200.
        assert!(llama[0] == plain[0] && llama[1] < plain[1] && llama[1] > plain[1] / 8.0);
        assert!((llama[2] * 8.0 - plain[2]).abs() < 1e-8);
        let yarn = RotaryScaling::Yarn {
            factor: 4.0,
            fast: 32.0,
            slow: 1.0,
            original: 4096.0,
            truncate: false,
            magnitude: 1.1,
        };
        let yarn = frequencies(&rotary(yarn), 0);
        assert!(yarn[0] == plain[0] && (yarn[3] * 4.0 - plain[3]).abs() < 1e-8);
        let dynamic = rotary(RotaryScaling::Dynamic { factor: 2.0, context: 16 });
        assert_eq!(frequencies(&dynamic, 15), plain);
        assert!(frequencies(&dynamic, 31)[3] < plain[3]);
    }

    #[test]
    fn long_texts_have_factors_of_their_own() {
        let long = rotary(RotaryScaling::Long {
            short: vec![1.0; 4],
            long: vec![1.0, 2.0, 4.0, 8.0],
            original: 10,
            magnitude: 1.2,
        });
        let plain = frequencies(&rotary(RotaryScaling::None), 0);
        assert_eq!(frequencies(&long, 9), plain);
        let stretched = frequencies(&long, 10);
        assert!((stretched[3] * 8.0 - plain[3]).abs() < 1e-9);
        let positions = Tensor::from_slice(&[0_i64, 10]).view([1, 2]);
        let cosines = Rotations::new(&positions, Kind::Float, Device::Cpu).unwrap().cosines(&long).unwrap();
        assert!((cosines.double_value(&[0, 0, 0]) - 1.2).abs() < 1e-6);
    }

    #[test]
    fn impossible_rotations_are_refused() {
        let plain = || rotary(RotaryScaling::None);
        assert!(plain().check(8).is_ok());
        for wrong in [
            Rotary { dimensions: 7, ..plain() },
            Rotary { dimensions: 0, ..plain() },
            Rotary { dimensions: 10, ..plain() },
            Rotary { base: f64::NAN, ..plain() },
            rotary(RotaryScaling::Linear { factor: 0.0 }),
            rotary(RotaryScaling::Long { short: vec![1.0; 3], long: vec![1.0; 4], original: 1, magnitude: 1.0 }),
        ] {
            assert!(wrong.check(8).is_err(), "{wrong:?}");
        }
    }
}
